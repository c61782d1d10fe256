"""Task heads: small modules that turn what an encoder says of a protein into a prediction.

Legend: T tokens of all sequences, N sequences, L residues of one, D what a head reads (d_input), E its hidden width,
C outputs, M attention maps. Special tokens are tokens like others here; who asks for residues leaves their rows out.
Every head sees one protein at a time: what is beside it in the batch does not change its result.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from protembed.errors import ModelError
from protembed.heads.card import Design, HeadConfig
from protembed.layout import Packed


def along_chain(convolution: nn.Conv1d, x: Tensor, layout: Packed) -> Tensor:
    """Convolve every sequence on its own, zeros beyond its ends; (T, D) -> (T, E)."""
    apart, places = layout.spread(x, convolution.kernel_size[0] // 2)
    mixed: Tensor = convolution(apart.T.unsqueeze(0))[0].T[places]
    return mixed


def total(x: Tensor, layout: Packed) -> Tensor:
    """Add up the tokens of every sequence; (T, E) -> (N, E)."""
    number = torch.arange(len(layout.sizes), device=x.device).repeat_interleave(layout.lengths)
    return x.new_zeros(len(layout.sizes), x.shape[1]).index_add(0, number, x)


def _counted(rows: Tensor | Sequence[Tensor], counts: Tensor | Sequence[Tensor]) -> Tensor:
    """Return the rows, or the pairs of all proteins, that count."""
    if isinstance(rows, Tensor):
        return rows[counts]
    return torch.cat([x[keep] for x, keep in zip(rows, counts, strict=True)])


class TaskHead(nn.Module):
    """What all heads have: a configuration, and a loss that goes with their kind."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.dropout = nn.Dropout(config.dropout)

    def loss(
        self,
        outputs: Tensor | Sequence[Tensor],
        targets: Tensor | Sequence[Tensor],
        counts: Tensor | Sequence[Tensor],
        class_weights: Tensor | None = None,
    ) -> Tensor:
        """Return the mean loss of the rows, or pairs, that count.

        `outputs` as forward returns them; `targets` and `counts` (True: counts) have a row for each: tokens (T,),
        flags (T, C) for tokens, sequences (N,), or one (L, L) a protein. Classes: cross entropy; flags and contacts:
        binary cross entropy, with `class_weights` the weight of yes; values: squared error.
        """
        outputs, targets = _counted(outputs, counts), _counted(targets, counts)
        match self.config.kind:
            case "residue_classes" | "sequence_class":
                return functional.cross_entropy(outputs.float(), targets, weight=class_weights)
            case "residue_flags" | "contacts":
                return functional.binary_cross_entropy_with_logits(
                    outputs.float(), targets.float(), pos_weight=class_weights
                )
            case _:
                return functional.mse_loss(outputs.squeeze(-1).float(), targets.float())


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


HEADS: dict[tuple[str, Design], type[TaskHead]] = {
    ("residue", "compact"): CompactResidueHead,
    ("residue", "tape"): TapeResidueHead,
    ("sequence", "compact"): CompactSequenceHead,
    ("sequence", "tape"): TapeSequenceHead,
    ("contacts", "compact"): AttentionContactHead,
    ("contacts", "tape"): TapeContactHead,
    ("contacts", "proteinlm"): ProteinLMContactHead,
}
"""Head modules by what they predict for (the first word of a kind) and their design."""


def make_head(config: HeadConfig) -> TaskHead:
    """Build the head that a configuration describes, with torch's random weights. Raises ModelError."""
    key = (config.kind.partition("_")[0], config.design)
    if key not in HEADS:
        known = ", ".join(design for kind, design in HEADS if kind == key[0])
        raise ModelError(f"there is no head of design {config.design!r} for {config.kind}", hint=f"Known: {known}.")
    return HEADS[key](config)
