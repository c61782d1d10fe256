"""The one Transformer encoder.

Legend: T tokens, B batch rows, L length, D d_model, H heads, K head dim, F d_ff;
`...` in a shape is (T,) when sequences are packed and (B, L) when they are padded (see layout.py).
"""

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional

from protembed import interrupts
from protembed.models.config import EncoderConfig
from protembed.models.packing import Layout

ROTARY_BASE = 10_000.0  # Su et al. 2021, arXiv 2104.09864


def make_norm(config: EncoderConfig) -> nn.Module:
    """Build the normalisation over D that the configuration names."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.d_model, eps=config.norm_eps)
    return nn.LayerNorm(config.d_model, eps=config.norm_eps, bias=config.bias)


Turn = tuple[Tensor, Tensor]
"""Cosine and sine of every token's rotary angles in float32, each (..., 1, K / 2)."""


def frequencies_by_formula(head_dim: int, device: torch.device | None = None) -> Tensor:
    """Return the rotary angles of one position, where the weights hold none; (K / 2,)."""
    exponents = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    return ROTARY_BASE**-exponents


def rotation(layout: Layout, frequencies: Tensor) -> Turn:
    """Return the turn of every token for frequencies (K / 2,)."""
    angles = torch.arange(layout.longest, device=frequencies.device).float().outer(frequencies.float())
    angles = angles[layout.positions].unsqueeze(-2)  # (..., 1, K / 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn the two halves of every head by the token's angles; (..., H, K)."""
    cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


class Attention(nn.Module):
    """Multi-head self-attention with fused query, key and value."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=config.bias)
        self.out = nn.Linear(config.d_model, config.d_model, bias=config.bias)
        self.q_norm = make_norm(config) if config.qk_norm else None
        self.k_norm = make_norm(config) if config.qk_norm else None

    def forward(self, x: Tensor, layout: Layout, turn: Turn | None) -> Tensor:
        qkv = self.qkv(x)  # (..., 3D)
        if self.q_norm is not None and self.k_norm is not None:
            q, k, v = qkv.chunk(3, dim=-1)
            # Under autocast norms return float32, which no fused attention takes.
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
            qkv = torch.cat((q, k, v), dim=-1)
        qkv = qkv.unflatten(-1, (3 * self.n_heads, -1))  # (..., 3H, K)
        if turn is None:
            q, k, v = qkv.chunk(3, dim=-2)  # (..., H, K) each
        else:
            q, k = rotate(qkv[..., : 2 * self.n_heads, :], *turn).chunk(2, dim=-2)
            v = qkv[..., 2 * self.n_heads :, :]
        mixed: Tensor = self.out(layout.attend(q, k, v).flatten(-2))  # (..., D)
        return mixed


class FeedForward(nn.Module):
    """Two linear layers with GELU between them, or SwiGLU."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.activation = config.activation
        width = 2 * config.d_ff if config.activation == "swiglu" else config.d_ff
        self.up = nn.Linear(config.d_model, width, bias=config.bias)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)  # (..., F), or (..., 2F) with SwiGLU
        if self.activation == "swiglu":
            gate, value = x.chunk(2, dim=-1)
            x = functional.silu(gate) * value  # (..., F)
        else:
            x = functional.gelu(x, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        narrow: Tensor = self.down(x)  # (..., D)
        return narrow


class Block(nn.Module):
    """Attention and feed-forward, each with a residual connection and a norm before or after."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.post_norm = config.norm_order == "post"
        self.attention_norm = make_norm(config)
        self.attention = Attention(config)
        self.feed_forward_norm = make_norm(config)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, layout: Layout, turn: Turn | None) -> Tensor:
        if self.post_norm:
            x = self.attention_norm(x + self.attention(x, layout, turn))
            x = self.feed_forward_norm(x + self.feed_forward(x))
        else:
            x = x + self.attention(self.attention_norm(x), layout, turn)
            x = x + self.feed_forward(self.feed_forward_norm(x))
        return x


class Stem(nn.Module):
    """A depthwise convolution over the embeddings, added to them: neighbours are known before any attention."""

    def __init__(self, width: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, d_model))

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        return x + layout.convolve(x, self.weight)


class Encoder(nn.Module):
    """Turn tokens into hidden states, one vector of size D a token.

    >>> config = EncoderConfig(vocab_size=29, d_model=16, n_layers=2, n_heads=2, d_ff=32, mask_id=1)
    >>> from protembed.models.packing import Packed
    >>> Encoder(config)(torch.tensor([2, 4, 3]), Packed([3]), layers={2})[2].shape
    torch.Size([3, 16])
    """

    frequencies: Tensor | None

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        rows = frequencies_by_formula(config.d_model // config.n_heads).repeat(config.frequencies, 1)
        self.register_buffer("frequencies", rows if config.frequencies else None)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        learned = config.position == "learned"
        self.positions = nn.Embedding(config.max_length or 0, config.d_model) if learned else None
        self.embed_norm = make_norm(config) if config.embed_norm else None
        self.stem = Stem(config.stem, config.d_model) if config.stem else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.final_norm = make_norm(config) if config.final_norm else None

    def forward(self, tokens: Tensor, layout: Layout, layers: Collection[int]) -> dict[int, Tensor]:
        """Return the hidden states (..., D) of the layers asked for; no layer past the highest is run.

        Layer 0 is the embedding layer, layer i the output of block i, layer n_layers the last after the final norm.
        """
        x = self.embed(tokens, layout)  # (..., D)
        hidden = {0: x} if 0 in layers else {}
        turn = self._turn(layout, 0)
        for number, block in enumerate(self.blocks[: max(layers)], start=1):
            if number > 1 and self.config.frequencies > 1:
                turn = self._turn(layout, number - 1)
            x = block(x, layout, turn)
            if torch.is_inference_mode_enabled():  # training stops between steps: see training/signals.py
                interrupts.check()
            if number == self.config.n_layers and self.final_norm is not None:
                x = self.final_norm(x)
            if number in layers:
                hidden[number] = x
        return hidden

    def _turn(self, layout: Layout, layer: int) -> Turn | None:
        """Return the turn of the tokens in a layer (from 0); None where positions are learned."""
        if self.config.position != "rotary":
            return None
        if self.frequencies is not None:
            return rotation(layout, self.frequencies[layer])
        head_dim = self.config.d_model // self.config.n_heads
        return rotation(layout, frequencies_by_formula(head_dim, layout.positions.device))

    def embed(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Look the tokens up: token dropout's scale, learned positions, norm and stem included; (..., D)."""
        x: Tensor = self.embedding(tokens)
        if self.config.token_dropout:
            # ESM: mask tokens are zero, the rest is scaled to the share of masks seen in training.
            masked = tokens == self.config.mask_id
            scale = (1 - self.config.token_dropout) / (1 - layout.share(masked))
            x = x.masked_fill(masked.unsqueeze(-1), 0) * scale.to(x.dtype)
        if self.positions is not None:
            x = x + self.positions(layout.positions)
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        if self.stem is not None:
            x = self.stem(x, layout)
        return x
