"""A recipe: how the weights of one foreign checkpoint become those of a native model."""

import fnmatch
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from protembed.checkpoints.foreign.tensors import Renamed, Weights
from protembed.checkpoints.native import feed, make_model, widest
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


@dataclass(frozen=True)
class Leftover:
    """Tensors of files that have no place in the model: the pattern of their names, and why nothing is lost.

    Where the reason is that the model computes with the same values anyway, `holds` tells whether it is so.
    """

    pattern: str
    reason: str
    holds: Callable[[Tensor], bool] | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that `build` needs. `heads` are patterns of names of trained heads, about which the user is told."""

    card: ModelCard
    weights: Weights
    rules: tuple[Rule, ...]
    leftovers: tuple[Leftover, ...] = ()
    heads: tuple[str, ...] = ()

    def names_of_heads(self) -> list[str]:
        """Return the tensors of trained heads, which are left out of the model."""
        return sorted(name for name in self.weights.specs if _fits(name, self.heads))


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


def agree(tensors: Sequence[Tensor]) -> Tensor:
    """Take the first of several copies of one tensor, which must be equal."""
    if any(not tensor.equal(tensors[0]) for tensor in tensors):
        raise ModelError("they are copies of one tensor, and differ", hint="The file is damaged, or put together.")
    return tensors[0]


def is_counting(tensor: Tensor) -> bool:
    """Tell whether a tensor counts from 0, as buffers of positions do."""
    return tensor.flatten().equal(torch.arange(tensor.numel(), dtype=tensor.dtype))


def is_zero(tensor: Tensor) -> bool:
    """Tell whether a tensor holds zeros alone."""
    return not tensor.any()


def build(recipe: Recipe, *, path: Path, device: torch.device, dtype: torch.dtype | None) -> ProteinModel:
    """Make the model tensor by tensor, in `dtype` or the widest type of the file. Raises ModelError.

    Its `card.sha256` is the digest that a native checkpoint in float32 would have: it depends on the values in the
    file alone, not on the type they are stored in or loaded as, nor on the form or place of the file.
    """
    _check_names(recipe, path)
    _check_leftovers(recipe, path)
    specs = recipe.weights.specs
    dtype = dtype or widest(specs[source].dtype for rule in recipe.rules for source in rule.sources)
    state = hashlib.sha256()

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for rule in sorted(recipe.rules, key=lambda rule: rule.native):
            tensor = _make(rule, recipe.weights, path)
            if tensor.is_floating_point():
                feed(state, rule.native, tensor.float())
            yield rule.native, tensor

    model = make_model(recipe.card, tensors(), device=device, dtype=dtype, place=str(path), stored=specs)
    model.card = replace(recipe.card, sha256=state.hexdigest())
    return model


def _make(rule: Rule, weights: Weights, path: Path) -> Tensor:
    tensors = [weights.read(name) for name in rule.sources]
    try:
        return rule.combine(tensors)
    except (RuntimeError, IndexError, ModelError) as error:
        shapes = ", ".join(f"{n} {tuple(t.shape)}" for n, t in zip(rule.sources, tensors, strict=True))
        if isinstance(error, ModelError):
            raise ModelError(f"{path}: {shapes}: {error}", hint=error.hint) from error
        raise ModelError(f"{path}: weights of these shapes do not fit together: {shapes}") from error


def _check_names(recipe: Recipe, path: Path) -> None:
    """Every tensor of the file must be used, or be known to have no use."""
    present = set(recipe.weights.specs)
    used = {source for rule in recipe.rules for source in rule.sources}
    if missing := sorted(used - present):
        raise ModelError(
            f"{path}: {len(missing)} weights are missing, the first is {missing[0]}", hint="Is the file complete?"
        )
    known = [*(leftover.pattern for leftover in recipe.leftovers), *recipe.heads]
    if extra := sorted(name for name in present - used if not _fits(name, known)):
        quantised = next((name for name in extra if name.endswith(_QUANTISED)), None)
        if quantised is not None:
            raise ModelError(
                f"{path}: {quantised} is of quantised weights, which are not read",
                hint="Use the checkpoint that it was made of.",
            )
        raise ModelError(
            f"{path}: {len(extra)} weights have no place in this kind of model, the first is {extra[0]}",
            hint="Does the configuration belong to these weights?",
        )


def _check_leftovers(recipe: Recipe, path: Path) -> None:
    """What is left out because the model computes with the same values must hold the same values."""
    used = {source for rule in recipe.rules for source in rule.sources}
    for leftover in recipe.leftovers:
        for name in recipe.weights.specs:
            if name in used or leftover.holds is None or not _fits(name, [leftover.pattern]):
                continue
            if not leftover.holds(recipe.weights.read(name, keep=True)):
                raise ModelError(
                    f"{path}: {name} is not what is computed with: {leftover.reason}",
                    hint="This model computes another function than the ones that are known.",
                )


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


_QUANTISED = (
    *(".SCB", ".weight_format", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"),  # bitsandbytes
    *(".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4"),
    *(".qweight", ".qzeros", ".scales", ".g_idx"),  # GPTQ, AWQ
    *(".weight_scale", ".weight_scale_inv", ".input_scale", ".weight_packed", ".weight_zero_point"),  # 8-bit floats
)
"""Endings of what is stored beside quantised weights."""
