"""What all task heads share: a configuration, a loss by kind, and ways along the chain.

Legend: T tokens of all sequences, N sequences, L residues of one, D what a head reads (d_input), E its hidden width,
C outputs, M attention maps. Special tokens are tokens like others here; who asks for residues leaves their rows out.
Every head sees one protein at a time: what is beside it in the batch does not change its result.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from protembed.models.head_config import HeadConfig
from protembed.models.packing import Packed


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
