"""The heads that a pretrained model brings along: small modules that read the encoder's hidden states."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from protembed.models.config import EncoderConfig, MlmHeadConfig
from protembed.models.packing import Packed


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


class Pooler(nn.Module):
    """Turn the first token's last hidden state into the vector of the protein, as BERT does: (N, D) -> (N, D)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.dense = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.dense(x).tanh()
        return pooled


def symmetric_maps(probabilities: Tensor) -> Tensor:
    """Make attention maps symmetric and take their average product off (APC, Dunn et al. 2008); (H, L, L)."""
    maps = probabilities.float()
    maps = maps + maps.transpose(-1, -2)
    rows = maps.sum(dim=-1, keepdim=True)  # (H, L, 1)
    return maps - rows * rows.transpose(-1, -2) / rows.sum(dim=-2, keepdim=True)


class ContactHead(nn.Module):
    """Logistic regression over the attention maps of all layers (Rao et al. 2020, bioRxiv 2020.12.15.422761)."""

    def __init__(self, encoder: EncoderConfig) -> None:
        super().__init__()
        self.n_heads = encoder.n_heads
        self.regression = nn.Linear(encoder.n_layers * encoder.n_heads, 1)

    def score(self, probabilities: Tensor, layer: int) -> Tensor:
        """Return one layer's part of the logits; (H, L, L) -> (L, L), `layer` from 0."""
        weight = self.regression.weight[0].float().view(-1, self.n_heads)[layer]  # (H,)
        return torch.einsum("h,hij->ij", weight, symmetric_maps(probabilities))

    def forward(self, scores: Sequence[Tensor]) -> Tensor:
        """Return the probabilities of contact from the parts of all layers; (L, L)."""
        logits: Tensor = torch.stack(tuple(scores)).sum(dim=0) + self.regression.bias.float()
        return logits.sigmoid()


class Observed(Packed):
    """One sequence whose attention maps are shown to `observe`, layer by layer: (H, L, L), softmax taken."""

    def __init__(self, length: int, observe: Callable[[Tensor], object], device: torch.device | str = "cpu") -> None:
        super().__init__([length], device)
        self.observe = observe

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))  # (H, L, K)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (H, L, L)
        probabilities = scores.float().softmax(dim=-1)
        self.observe(probabilities)
        attended: Tensor = probabilities.to(v.dtype) @ v
        return attended.transpose(0, 1)  # (L, H, K)


class ObservedBatch(Packed):
    """Several sequences in one pass, the attention maps of each shown to its own observer, layer by layer."""

    def __init__(
        self,
        lengths: Sequence[int],
        observers: Sequence[Callable[[Tensor], object]],
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(lengths, device)
        pairs = zip(lengths, observers, strict=True)
        self.each = [Observed(length, observe, device) for length, observe in pairs]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(*(torch.split(x, self.sizes) for x in (q, k, v)), strict=True)
        return torch.cat([one.attend(*part) for one, part in zip(self.each, parts, strict=True)])
