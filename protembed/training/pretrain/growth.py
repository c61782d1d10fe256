"""A larger model out of a trained one: it computes the same at first, and has room to learn more.

Layers and feed-forward columns are added that write zeros (as Net2Net keeps the function, Chen et al. 2016,
arXiv 1511.05641).
"""

from dataclasses import replace

import torch
from torch import Tensor

from protembed.models.config import EncoderConfig, ModelCard
from protembed.models.protein_model import ProteinModel

_WRITES = ("attention.out.weight", "feed_forward.down.weight")
"""The matrices through which a block adds to its input."""


def can_grow(small: EncoderConfig, large: EncoderConfig) -> bool:
    """Tell whether `large` is `small` with more layers, wider feed-forwards, or a stem that `small` has not.

    Where norms come last (post), one more layer is one more norm: it does not compute the same.
    """
    if small.norm_order == "post" and small.n_layers != large.n_layers:
        return False
    alike = replace(small, n_layers=large.n_layers, d_ff=large.d_ff, stem=large.stem) == large
    room = small.n_layers <= large.n_layers and small.d_ff <= large.d_ff and small.stem in (0, large.stem)
    return alike and room


@torch.no_grad()
def grow(small: ProteinModel, card: ModelCard, seed: int) -> ProteinModel:
    """Build the model of a card with the weights of a smaller one in it: the same function, within rounding.

    New layers lie behind the old ones. Heads that only the new model has are drawn, those that only the old one has are
    left out. `can_grow` must hold for the two shapes.
    """
    model = ProteinModel(card)
    model.initialise(seed)
    trained = small.state_dict()
    for name, weight in model.named_parameters():
        old = trained.get(name)
        if old is None and name.endswith(_WRITES):
            weight.zero_()
        elif old is not None and ".feed_forward.up." in name:
            _fill_rows(weight, old, parts=2 if card.encoder.activation == "swiglu" else 1)
        elif old is not None and name.endswith("feed_forward.down.weight"):
            weight.zero_()
            weight[:, : old.shape[1]] = old
        elif old is not None:
            weight.copy_(old)
    return model


def _fill_rows(weight: Tensor, old: Tensor, parts: int) -> None:
    """Copy the rows of `old` to the beginning of each part (gate and value are two) of `weight`."""
    for new_part, old_part in zip(weight.chunk(parts), old.chunk(parts), strict=True):
        new_part[: len(old_part)] = old_part
