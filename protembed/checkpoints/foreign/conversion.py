"""A recipe: how the weights of one foreign checkpoint become those of a native model."""

import fnmatch
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from protembed.checkpoints.foreign.tensors import Renamed, Weights
from protembed.checkpoints.native import digest, make_model, widest
from protembed.errors import ModelError
from protembed.models.config import ModelCard
from protembed.models.protein_model import ProteinModel

Table = Mapping[str, str | tuple[str, ...]]
"""Native name -> foreign name or names. `*` is the number of the layer. A name that ends in `.weight` or `.bias` is
one tensor, any other a module with both; of several, each makes its share of the rows, in their order."""

Combine = Callable[[Sequence[Tensor]], Tensor]
"""Makes a native tensor of its foreign ones."""


def join(tensors: Sequence[Tensor]) -> Tensor:
    """Put rows below each other; a single tensor stays as it is."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How one native tensor is made."""

    native: str
    sources: tuple[str, ...]
    combine: Combine = join


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that `build` needs. `ignored` and `heads` are patterns of names that have no place in the model:
    buffers and leftovers that nobody misses, and trained heads, about which the user is told."""

    card: ModelCard
    weights: Weights
    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()


def make_rules(table: Table, *, n_layers: int, transforms: Mapping[str, Combine] | None = None) -> tuple[Rule, ...]:
    """Write a table out to one rule a tensor; `transforms` names the native tensors that are not simply joined.

    >>> [rule.native for rule in make_rules({"blocks.*.out": "layer.*.dense"}, n_layers=1)]
    ['blocks.0.out.weight', 'blocks.0.out.bias']
    """
    rules = []
    for native, foreign in table.items():
        sources = (foreign,) if isinstance(foreign, str) else foreign
        endings = ("",) if native.endswith((".weight", ".bias")) else (".weight", ".bias")
        for ending in endings:
            combine = (transforms or {}).get(native + ending, join)
            for layer in range(n_layers if "*" in native else 1):
                name = (native + ending).replace("*", str(layer))
                places = tuple((source + ending).replace("*", str(layer)) for source in sources)
                rules.append(Rule(native=name, sources=places, combine=combine))
    return tuple(rules)


def strip(weights: Weights, *prefixes: str) -> Weights:
    """Take the first prefix that fits off every name, and call a norm's gain and shift weight and bias."""

    def rename(name: str) -> str:
        name = next((name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix)), name)
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
            name = name.removesuffix(old) + new if name.endswith(old) else name
        return name

    return Renamed(weights, rename)


def build(recipe: Recipe, *, path: Path, device: torch.device, dtype: torch.dtype | None) -> ProteinModel:
    """Make the model tensor by tensor, in `dtype` or the widest type of the file. Raises ModelError."""
    _check_names(recipe, path)
    specs = recipe.weights.specs
    dtype = dtype or widest(specs[source].dtype for rule in recipe.rules for source in rule.sources)
    tensors = ((rule.native, _make(rule, recipe.weights, path)) for rule in recipe.rules)
    model = make_model(recipe.card, tensors, device=device, dtype=dtype, place=str(path))
    model.card = replace(recipe.card, sha256=digest(model.state_dict()))
    return model


def _make(rule: Rule, weights: Weights, path: Path) -> Tensor:
    tensors = [weights.read(name) for name in rule.sources]
    try:
        return rule.combine(tensors)
    except (RuntimeError, IndexError) as error:
        shapes = ", ".join(f"{n} {tuple(t.shape)}" for n, t in zip(rule.sources, tensors, strict=True))
        raise ModelError(f"{path}: weights of these shapes do not fit together: {shapes}") from error


def _check_names(recipe: Recipe, path: Path) -> None:
    """Every tensor of the file must be used, or be known to have no use."""
    present = set(recipe.weights.specs)
    used = {source for rule in recipe.rules for source in rule.sources}
    if missing := sorted(used - present):
        raise ModelError(
            f"{path}: {len(missing)} weights are missing, the first is {missing[0]}", hint="Is the file complete?"
        )
    rest = {name for name in present - used if not _fits(name, recipe.ignored)}
    heads = sorted(name for name in rest if _fits(name, recipe.heads))
    if extra := sorted(rest - set(heads)):
        raise ModelError(
            f"{path}: {len(extra)} weights have no place in this kind of model, the first is {extra[0]}",
            hint="Does the configuration belong to these weights?",
        )
    if heads:
        warnings.warn(f"{path}: the task head is left out of the model; `--task {path}` runs it", stacklevel=4)


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
