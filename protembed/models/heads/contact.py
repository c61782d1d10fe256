"""Heads that say which residues touch; the legend is that of base.py."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from protembed.models.head_config import HeadConfig
from protembed.models.heads.base import TaskHead, along_chain
from protembed.models.packing import Packed


class AttentionContactHead(TaskHead):
    """Logistic regression over all attention maps (Rao et al. 2020, bioRxiv 2020.12.15.422761).

    `forward` takes `symmetric_maps` of the residues, (M, L, L) a protein; `score` does the same a layer at a time,
    so that a large model's maps need not be in memory together.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.regression = nn.Linear(config.d_input, 1)

    def forward(self, x: Sequence[Tensor], layout: Packed | None = None) -> list[Tensor]:
        weight, bias = self.regression.weight[0], self.regression.bias
        return [torch.einsum("m,mij->ij", weight, maps) + bias for maps in x]

    def score(self, probabilities: Tensor, layer: int) -> Tensor:
        """Return one layer's part of the logits, to be added up for `finish`; (H, L, L) -> (L, L), `layer` from 0.

        All steps are linear in the maps: they are weighted first, and made symmetric once, at the end.
        """
        weight = self.regression.weight[0].view(-1, self.config.n_heads)[layer]  # (H,)
        maps = probabilities.float()
        mixed = (weight @ maps.flatten(1)).view(maps.shape[1:])  # (L, L)
        sums = maps.sum(dim=-1) + maps.sum(dim=-2)  # (H, L)
        scaled = sums * (weight.unsqueeze(1) / sums.sum(dim=-1, keepdim=True))
        return mixed.addmm_(scaled.T, sums, alpha=-0.5)

    def finish(self, total: Tensor) -> Tensor:
        """Return the logits from the sum over all layers; (L, L)."""
        return total + total.T + self.regression.bias


class PairContactHead(TaskHead):
    """Products of two residues in several channels, what their separation says, and convolutions over the map.

    Residues know their neighbours as in CompactResidueHead; a channel is a product of low rank, as attention's scores
    are; two convolutions of 3 x 3 see ladders of strands; (T, D) -> (L, L) a protein.
    """

    CHANNELS = 8
    BINS = 41
    """Of the separation, on a logarithmic scale: up to about 3,000 residues."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.scale = nn.BatchNorm1d(config.d_input, affine=False, momentum=None)
        self.inward = nn.Linear(config.d_input, config.hidden)
        self.mix = nn.Conv1d(config.hidden, config.hidden, config.kernel, padding=config.kernel // 2)
        self.left = nn.Linear(config.hidden, config.hidden)
        self.right = nn.Linear(config.hidden, config.hidden)
        self.separation = nn.Embedding(self.BINS, self.CHANNELS)
        self.first, self.second = (nn.Conv2d(self.CHANNELS, self.CHANNELS, 3, padding=1) for _ in range(2))
        self.outward = nn.Linear(self.CHANNELS, 1)

    def forward(self, x: Tensor, layout: Packed) -> list[Tensor]:
        x = self.dropout(functional.gelu(self.inward(self.scale(x))))  # (T, E)
        x = self.dropout(x + functional.gelu(along_chain(self.mix, x, layout)))
        sides = (torch.split(side(x), layout.sizes) for side in (self.left, self.right))
        return [self._pairs(left, right) for left, right in zip(*sides, strict=True)]

    def _pairs(self, left: Tensor, right: Tensor) -> Tensor:
        left, right = (
            side.reshape(len(side), self.CHANNELS, -1).transpose(0, 1) for side in (left, right)
        )  # (8, L, R)
        products = left @ right.transpose(1, 2) * left.shape[-1] ** -0.5
        pairs = products + products.transpose(1, 2) + self._separations(left.shape[1])
        pairs = pairs.unsqueeze(0)  # (1, 8, L, L)
        for convolution in (self.first, self.second):
            pairs = pairs + functional.gelu(convolution(pairs))
        logits: Tensor = self.outward(pairs[0].permute(1, 2, 0)).squeeze(-1)  # (L, L)
        return (logits + logits.T) / 2

    def _separations(self, length: int) -> Tensor:
        """Look up what the separation of two residues says; (8, L, L)."""
        place = torch.arange(length, device=self.separation.weight.device)
        apart = (place.unsqueeze(1) - place).abs().float()
        bins = (5 * torch.log1p(apart)).long().clamp(max=self.BINS - 1)
        rows: Tensor = self.separation(bins)
        return rows.permute(2, 0, 1)


class TapeContactHead(TaskHead):
    """TAPE's: a linear layer on products of two tokens, made symmetric; (T, D) -> (L, L) a protein.

    The original's difference features cancel out when its two halves are averaged, and its two logits make one.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.products = nn.Linear(config.d_input, 1)

    def forward(self, x: Tensor, layout: Packed) -> list[Tensor]:
        scaled = self.dropout(x) * self.products.weight
        pairs = zip(torch.split(scaled, layout.sizes), torch.split(x, layout.sizes), strict=True)
        return [left @ right.T + self.products.bias for left, right in pairs]


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, the input added; (1, E, L, L)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.first_norm, self.second_norm = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(x + self.second_norm(self.second(inner)))


class ProteinLMContactHead(TaskHead):
    """ProteinLM's (arXiv 2108.07435): pairs of tokens through 30 residual blocks; (T, D) -> (L, L) a protein."""

    BLOCKS = 30

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.products = nn.Linear(config.d_input, config.hidden)
        self.differences = nn.Linear(config.d_input, config.hidden, bias=False)
        self.blocks = nn.ModuleList(_ResidualBlock(config.hidden) for _ in range(self.BLOCKS))
        self.outward = nn.Linear(config.hidden, 1)

    def forward(self, x: Tensor, layout: Packed) -> list[Tensor]:
        return [self._pairs(protein) for protein in torch.split(self.dropout(x), layout.sizes)]

    def _pairs(self, x: Tensor) -> Tensor:
        pairs = (x * self.products.weight.unsqueeze(1)) @ x.T + self.products.bias[:, None, None]  # (E, L, L)
        single = self.differences(x).T  # (E, L)
        pairs = (pairs + single.unsqueeze(2) - single.unsqueeze(1)).unsqueeze(0)
        for block in self.blocks:
            pairs = block(pairs)
        logits: Tensor = self.outward(pairs[0].permute(1, 2, 0)).squeeze(-1)  # (L, L)
        return (logits + logits.T) / 2
