"""Heads that say something of every residue; the legend is that of base.py."""

from torch import Tensor, nn
from torch.nn import functional

from protembed.models.head_config import HeadConfig
from protembed.models.heads.base import TaskHead, along_chain
from protembed.models.packing import Packed


class CompactResidueHead(TaskHead):
    """Standardised columns, a linear layer, a convolution along the chain with a residual; (T, D) -> (T, C)."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.scale = nn.BatchNorm1d(config.d_input, affine=False, momentum=None)
        self.inward = nn.Linear(config.d_input, config.hidden)
        self.mix = nn.Conv1d(config.hidden, config.hidden, config.kernel, padding=config.kernel // 2)
        self.outward = nn.Linear(config.hidden, config.outputs)

    def forward(self, x: Tensor, layout: Packed) -> Tensor:
        x = self.dropout(functional.gelu(self.inward(self.scale(x))))  # (T, E)
        x = x + functional.gelu(along_chain(self.mix, x, layout))
        scores: Tensor = self.outward(self.dropout(x))  # (T, C)
        return scores


class TapeResidueHead(TaskHead):
    """TAPE's: batch norm, convolution of 5, ReLU, convolution of 3; (T, D) -> (T, C).

    The norm of the weights (one scalar a layer) is folded into them. In the original a convolution sees the padding
    behind a shorter protein of a batch; here there is none. Rao et al. 2019, arXiv 1906.08230.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.norm = nn.BatchNorm1d(config.d_input)
        self.first = nn.Conv1d(config.d_input, config.hidden, 5, padding=2)
        self.second = nn.Conv1d(config.hidden, config.outputs, 3, padding=1)

    def forward(self, x: Tensor, layout: Packed) -> Tensor:
        x = self.dropout(functional.relu(along_chain(self.first, self.norm(x), layout)))  # (T, E)
        return along_chain(self.second, x, layout)


class TransformersResidueHead(TaskHead):
    """That of transformers' models for token classification: one linear layer; (T, D) -> (T, C)."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.outward = nn.Linear(config.d_input, config.outputs)

    def forward(self, x: Tensor, layout: Packed) -> Tensor:
        scores: Tensor = self.outward(self.dropout(x))  # (T, C)
        return scores
