"""The rotary frequencies of foreign models: those in the file, else by the formula as their authors' code computes it.

A file's own count: published ESM-2 files hold frequencies that were rounded to float16 in training, and the model has
learned with these. At 1,000 residues the exact ones move its outputs by 1e-2.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from protembed.checkpoints.foreign.conversion import Rule
from protembed.checkpoints.foreign.tensors import Weights
from protembed.errors import ModelError

NATIVE = "encoder.frequencies"


def by_formula(head_dim: int, theta: float = 10_000.0) -> Tensor:
    """Return 1 / theta^(2i / head_dim), (head_dim / 2,), with the roundings that torch's float32 makes on the way.

    To the last bit: at 4,000 residues one unit in the last place of a frequency moves outputs by 4e-4. The power is
    rounded once, from float64, so that every machine finds the same.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = (np.float64(theta) ** exponents.astype(np.float64)).astype(np.float32)
    return torch.from_numpy(np.float32(1) / powers)


def formula_rule(head_dim: int, theta: float = 10_000.0) -> Rule:
    """Return the rule of a model whose file holds no frequencies; `config.frequencies` is 1."""
    return Rule(native=NATIVE, sources=(), combine=partial(_computed, head_dim=head_dim, theta=theta))


def stored_rule(
    weights: Weights, *, per_layer: Sequence[str], shared: Sequence[str], head_dim: int, theta: float, place: str
) -> tuple[Rule, int]:
    """Return the rule for the frequencies of a file, and how many rows they make: 1 when all layers have the same.

    `per_layer` are the names that a file has one of for every layer, `shared` those for all layers. Raises ModelError
    when only some layers have theirs, or the file holds two sets that differ.
    """
    layers = [name for name in per_layer if name in weights.specs]
    common = [name for name in shared if name in weights.specs]
    if not layers and not common:
        return formula_rule(head_dim, theta), 1
    if layers and len(layers) < len(per_layer):
        absent = next(name for name in per_layer if name not in weights.specs)
        raise ModelError(f"{place}: the rotary frequencies of some layers are there, and {absent} is not")
    names = (*layers, *common)
    for name in names:
        if weights.specs[name].shape != (head_dim // 2,):
            raise ModelError(f"{place}: {name} is {weights.specs[name].shape}, not {(head_dim // 2,)}")
    found = [weights.read(name, keep=True) for name in names]
    is_one = all(row.equal(found[0]) for row in found)
    if layers and common and not is_one:
        raise ModelError(f"{place}: {common[0]} and {layers[0]} are both there, and differ")
    rows = 1 if is_one else len(layers)
    return Rule(native=NATIVE, sources=names, combine=partial(_stacked, rows=rows)), rows


def _computed(tensors: Sequence[Tensor], *, head_dim: int, theta: float) -> Tensor:
    return by_formula(head_dim, theta).unsqueeze(0)


def _stacked(tensors: Sequence[Tensor], *, rows: int) -> Tensor:
    return torch.stack([tensor.float() for tensor in tensors[:rows]])
