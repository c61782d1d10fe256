"""Heads that say something of a protein; the legend is that of base.py."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from protembed.models.head_config import HeadConfig
from protembed.models.heads.base import TaskHead, total
from protembed.models.packing import Packed


class RunningScale(nn.Module):
    """Standardise columns by a running mean and variance, in training, too; (N, E) -> (N, E).

    Unlike BatchNorm it takes batches of one protein. Variants of one protein differ by thousandths of a pooled column:
    what is small is made as large as what is not.
    """

    MEMORY = 100  # batches that the statistics go back
    EPS = 1e-8

    running_mean: Tensor
    running_var: Tensor
    batches: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.register_buffer("batches", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self._follow(x.detach().float())
        return (x - self.running_mean) * (self.running_var + self.EPS).rsqrt()

    def _follow(self, x: Tensor) -> None:
        self.batches += 1
        share = 1 / min(int(self.batches), self.MEMORY)
        apart = x - self.running_mean
        self.running_mean += share * apart.mean(dim=0)
        # From the old mean and the new one: right for a batch of one, too.
        spread = (apart * (x - self.running_mean)).mean(dim=0)
        self.running_var.copy_(spread if self.batches == 1 else self.running_var + share * (spread - self.running_var))


class CompactSequenceHead(TaskHead):
    """Standardised columns, a linear layer, attention pooling beside the mean, two layers more; (T, D) -> (N, C)."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.scale = nn.BatchNorm1d(config.d_input, affine=False, momentum=None)
        self.inward = nn.Linear(config.d_input, config.hidden)
        self.attention = nn.Linear(config.hidden, 1)
        self.pooled_scale = RunningScale(2 * config.hidden)
        self.middle = nn.Linear(2 * config.hidden, config.hidden)
        self.outward = nn.Linear(config.hidden, config.outputs)

    def forward(self, x: Tensor, layout: Packed) -> Tensor:
        x = self.dropout(functional.gelu(self.inward(self.scale(x))))  # (T, E)
        scores = self.attention(x)  # (T, 1)
        highest = torch.stack([part.max() for part in torch.split(scores.detach(), layout.sizes)])
        weight = (scores - highest.repeat_interleave(layout.lengths).unsqueeze(1)).exp()
        attended = total(weight * x, layout) / total(weight, layout)  # (N, E)
        mean = total(x, layout) / layout.lengths.unsqueeze(1)
        pooled = self.pooled_scale(torch.cat((attended, mean), dim=1))  # (N, 2E)
        pooled = functional.gelu(self.middle(pooled))  # (N, E)
        outputs: Tensor = self.outward(self.dropout(pooled))
        return outputs


class TapeSequenceHead(TaskHead):
    """TAPE's and ProteinLM's: two linear layers on the model's pooled vector; (N, D) -> (N, C)."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.first = nn.Linear(config.d_input, config.hidden)
        self.second = nn.Linear(config.hidden, config.outputs)

    def forward(self, x: Tensor, layout: Packed) -> Tensor:
        outputs: Tensor = self.second(self.dropout(functional.relu(self.first(x))))
        return outputs


class TransformersSequenceHead(TaskHead):
    """That of transformers' models for sequence classification: two layers on the first token; (T, D) -> (N, C)."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.first = nn.Linear(config.d_input, config.hidden)
        self.second = nn.Linear(config.hidden, config.outputs)

    def forward(self, x: Tensor, layout: Packed) -> Tensor:
        first = self.dropout(x[layout.offsets[:-1].long()])  # (N, D)
        outputs: Tensor = self.second(self.dropout(self.first(first).tanh()))
        return outputs
