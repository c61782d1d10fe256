"""Heads: small modules that read the encoder's hidden states."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from protembed.card import EncoderConfig, MlmHeadConfig


class MaskedLanguageModelHead(nn.Module):
    """Score every token of the vocabulary at every position: (..., D) -> (..., vocab_size)."""

    def __init__(self, encoder: EncoderConfig, config: MlmHeadConfig) -> None:
        super().__init__()
        d_model = encoder.d_model
        self.dense = nn.Linear(d_model, d_model) if config.transform else None
        self.norm = nn.LayerNorm(d_model, eps=config.norm_eps) if config.transform else None
        self.weight = None if config.tied else nn.Parameter(torch.empty(encoder.vocab_size, d_model))
        self.bias = nn.Parameter(torch.zeros(encoder.vocab_size))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return logits; `embedding` (vocab_size, D) is the decoder's matrix when the head is tied."""
        if self.dense is not None and self.norm is not None:
            x = self.norm(functional.gelu(self.dense(x)))
        return functional.linear(x, embedding if self.weight is None else self.weight, self.bias)
