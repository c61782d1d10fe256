"""How sequences lie in a batch, and the attention that goes with it.

Legend: T tokens of all sequences, N sequences, B batch rows, L padded length, D d_model, H heads, K head dim.
`...` in a shape is (T,) under Packed and (B, L) under Padded: the encoder is the same code for both.
"""

import itertools
from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from protembed import interrupts

LARGEST_PIECE = 2**32
"""Products in one call of attention on a CPU, which no signal interrupts: about half a second of one core."""

PLAIN_LENGTH = 1024
"""Up to here the backward of two matrix products takes half the time of torch 2.13's fused bfloat16 kernel for CPUs."""


class Layout(Protocol):
    """Tells the encoder where sequences begin and end."""

    positions: Tensor
    """Position of every token in its own sequence, from 0; shape (...)."""

    longest: int
    """Tokens of the longest sequence."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend within each sequence; q, k, v and the result are (..., H, K)."""

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """Convolve every column of x (..., D) with its own of weight (K, D) within each sequence, zeros beyond it."""

    def share(self, flags: Tensor) -> Tensor:
        """Return for every token the share of flagged tokens in its sequence; (...) -> (..., 1)."""


def _is_fusable(q: Tensor) -> bool:
    """Tell whether flash attention takes these heads: half precision, an Ampere GPU or newer, K in steps of 8."""
    if not q.is_cuda or q.dtype not in (torch.bfloat16, torch.float16):
        return False
    return torch.cuda.get_device_capability(q.device) >= (8, 0) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256


def _weighted_shifts(x: Tensor, weight: Tensor) -> Tensor:
    """Add up K neighbouring rows, each with its weights (K, D); (..., L + K - 1, D) -> (..., L, D).

    Depthwise convolution; on a CPU faster than torch's own by a third.
    """
    length = x.shape[-2] - len(weight) + 1
    weight = weight.to(x.dtype)
    mixed = x[..., :length, :] * weight[0]
    for shift in range(1, len(weight)):
        mixed = mixed + x[..., shift : shift + length, :] * weight[shift]
    return mixed


def _attend_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend within one sequence; q, k, v and the result are (1, H, L, K)."""
    if q.requires_grad and q.dtype == torch.bfloat16 and not q.is_cuda and q.shape[2] <= PLAIN_LENGTH:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (1, H, L, L)
        attended: Tensor = scores.softmax(dim=-1).to(v.dtype) @ v
        return attended
    queries = _queries_at_once(q)
    if queries >= q.shape[2] or q.requires_grad or q.is_cuda:
        return scaled_dot_product_attention(q, k, v)
    return _attend_in_pieces(q, k, v, queries)


def _queries_at_once(q: Tensor) -> int:
    """Return how many queries of (1, H, L, K) a call may take: a multiple of 512, the block of torch's own kernel."""
    return max(1, LARGEST_PIECE // (512 * q[0].numel())) * 512


def _attend_in_pieces(q: Tensor, k: Tensor, v: Tensor, queries: int) -> Tensor:
    """Do the same for so many queries at once, and listen for signals between: (30,000)^2 products take a minute."""
    pieces = []
    for piece in torch.split(q, queries, dim=2):
        interrupts.check()
        pieces.append(scaled_dot_product_attention(piece, k, v))
    return torch.cat(pieces, dim=2)


class Packed:
    """Sequences end to end in one row of T tokens: nothing is padded, nothing is wasted.

    `longest` may be told, when it is to be the same for many batches (compiled code).

    >>> layout = Packed([2, 3])
    >>> layout.positions.tolist()
    [0, 1, 0, 1, 2]
    """

    def __init__(
        self, lengths: Sequence[int], device: torch.device | str = "cpu", *, longest: int | None = None
    ) -> None:
        self.sizes = list(lengths)
        self.longest = longest or max(self.sizes)
        self.lengths = torch.tensor(self.sizes, device=device)  # (N,)
        self.offsets = torch.tensor([0, *itertools.accumulate(self.sizes)], device=device, dtype=torch.int32)
        # The size is told: a GPU would be waited for to learn it.
        starts = self.offsets[:-1].repeat_interleave(self.lengths, output_size=sum(self.sizes))
        self.positions = torch.arange(len(starts), device=device) - starts  # (T,)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self._attend_fused(q, k, v) if _is_fusable(q) else self._attend_each(q, k, v)

    def _attend_fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One flash-attention call over all sequences (CUDA, half precision)."""
        from torch.nn.attention.varlen import varlen_attn  # takes a second to import, and only a GPU needs it

        attended = varlen_attn(q, k, v, self.offsets, self.offsets, self.longest, self.longest)
        assert isinstance(attended, Tensor)
        return attended  # (T, H, K)

    def _attend_each(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One call a sequence: on a CPU as fast as any other way, and without a mask."""
        parts = zip(*(torch.split(x.transpose(0, 1).unsqueeze(0), self.sizes, dim=2) for x in (q, k, v)), strict=True)
        attended = [_attend_one(*part).squeeze(0).transpose(0, 1) for part in parts]
        return torch.cat(attended)  # (T, H, K)

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        gap = len(weight) // 2
        apart, places = self.spread(x, gap)
        return _weighted_shifts(apart, weight)[places - gap]  # (T, D)

    def spread(self, x: Tensor, gap: int) -> tuple[Tensor, Tensor]:
        """Lay the sequences of x (T, D) apart, `gap` rows of zeros before, between and behind them.

        Returns the rows, and the places (T,) of the tokens in them: a neighbour there is of the same sequence, or zero.
        """
        number = torch.arange(len(self.sizes), device=x.device).repeat_interleave(self.lengths, output_size=len(x))
        places = torch.arange(len(x), device=x.device) + gap * (number + 1)
        rows = x.new_zeros(len(x) + gap * (len(self.sizes) + 1), x.shape[1])
        return rows.index_copy(0, places, x), places

    def share(self, flags: Tensor) -> Tensor:
        counts = torch.segment_reduce(flags.float(), "sum", lengths=self.lengths)  # (N,)
        return (counts / self.lengths).repeat_interleave(self.lengths).unsqueeze(-1)  # (T, 1)

    def pool(self, x: Tensor, reduce: Literal["mean", "max"], *, prefix: int, suffix: int) -> Tensor:
        """Reduce each sequence over its residues, special tokens left out; (T, D) -> (N, D), float32.

        Sums run in float64, so that the mean of a long protein does not depend on their order.
        """
        ends = (self.lengths - suffix).repeat_interleave(self.lengths)
        residues = (self.positions >= prefix) & (self.positions < ends)
        lengths = self.lengths - prefix - suffix
        return torch.segment_reduce(x[residues].double(), reduce, lengths=lengths, axis=0).float()


class Padded:
    """Sequences in rows of equal length; `mask` (B, L) is True where a real token stands."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self.longest = mask.shape[1]
        self.positions = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)  # (B, L)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, L, K)
        attended = scaled_dot_product_attention(q, k, v, attn_mask=self.mask[:, None, None, :])
        return attended.transpose(1, 2)  # (B, L, H, K)

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        gap = len(weight) // 2
        apart = pad(x * self.mask.unsqueeze(-1), (0, 0, gap, gap))  # (B, L + K - 1, D)
        return _weighted_shifts(apart, weight)

    def share(self, flags: Tensor) -> Tensor:
        counts = (flags & self.mask).sum(dim=1, keepdim=True).float()
        return (counts / self.mask.sum(dim=1, keepdim=True)).unsqueeze(-1)  # (B, 1, 1)
