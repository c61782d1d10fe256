"""Weights of foreign files by name, read one tensor at a time so that a model is never in memory twice."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from protembed.checkpoints.foreign.unpickle import is_mappable, unpickle
from protembed.checkpoints.tensor_file import FLOATS, Spec
from protembed.errors import ModelError
from protembed.schema import said

# What is read of a mapped file stays in memory until the map is dropped and made anew: after so many bytes, or shares.
_WINDOW = 16 * 2**20
_MAPS = 64
_COPIES = 4
"""Weights that are named several times, as tied ones are, count several times; more than this is no model."""
_DEEPEST, _MOST_NAMES = 64, 1_000_000
_STATES = ("model", "state_dict", "model_state_dict")


class Weights(Protocol):
    """Named tensors of one checkpoint."""

    @property
    def specs(self) -> Mapping[str, Spec]:
        """What there is, without reading it."""

    def read(self, name: str, *, keep: bool = False) -> Tensor:
        """Return one tensor, once unless `keep` is set; it may be a view of the file: copy what is kept."""


class TorchFile:
    """One file of torch.save; `header` is what it holds beside the weights."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mapped = is_mappable(path)
        content = unpickle(path)
        if not isinstance(content, dict):
            raise ModelError(
                f"{path}: holds a {type(content).__name__}, not named weights",
                hint="Save the model's state_dict() instead of the model itself.",
            )
        self.header: Mapping[str, Any] = {
            k: v for k, v in content.items() if k == "cfg" or not isinstance(v, dict | Tensor)
        }
        self._tensors = _state(content, path)
        self.specs = {name: Spec.of(tensor) for name, tensor in self._tensors.items()}
        size = sum(tensor.nbytes for tensor in self._tensors.values() if tensor.dtype in FLOATS)
        if size > _COPIES * path.stat().st_size:
            raise ModelError(f"{path}: names {size:,} bytes of weights, and the file has {path.stat().st_size:,}")
        self._window = max(_WINDOW, size // _MAPS)
        self._seen = 0

    def read(self, name: str, *, keep: bool = False) -> Tensor:
        if not self.mapped:
            return self._tensors[name] if keep else self._tensors.pop(name)
        if self._seen > self._window:
            self._tensors, self._seen = _state(unpickle(self.path), self.path), 0
        self._seen += self._tensors[name].nbytes
        return self._tensors[name]


class Joined:
    """Several files as one, as with shards."""

    def __init__(self, parts: Sequence[Weights]) -> None:
        self._owner = {name: part for part in parts for name in part.specs}
        self.specs = {name: part.specs[name] for name, part in self._owner.items()}

    def read(self, name: str, *, keep: bool = False) -> Tensor:
        return self._owner[name].read(name, keep=keep)


class Renamed:
    """The same weights under other names."""

    def __init__(self, weights: Weights, rename: Callable[[str], str]) -> None:
        self._weights = weights
        self._names: dict[str, str] = {}
        for old in weights.specs:
            if self._names.setdefault(rename(old), old) != old:
                raise ModelError(f"the checkpoint holds two tensors for one: {self._names[rename(old)]} and {old}")
        self.specs = {name: weights.specs[old] for name, old in self._names.items()}

    def read(self, name: str, *, keep: bool = False) -> Tensor:
        return self._weights.read(self._names[name], keep=keep)


def count_layers(weights: Weights, prefix: str) -> int:
    """Return how many layers there are whose tensors are called by `prefix` and a number."""
    numbers = {name[len(prefix) :].partition(".")[0] for name in weights.specs if name.startswith(prefix)}
    return sum(number.isdecimal() for number in numbers)


def is_equal(weights: Weights, one: str, other: str) -> bool:
    """Tell whether two tensors are there with the same values."""
    first, second = weights.specs[one], weights.specs[other]
    if first.address and first.address == second.address:
        return True
    if first.shape != second.shape:
        return False
    return weights.read(one, keep=True).equal(weights.read(other, keep=True).to(first.dtype))


def _state(content: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """Find the state dictionary and flatten it: nested names are joined by dots. Raises ModelError."""
    state = next((content[key] for key in _STATES if isinstance(content.get(key), dict)), content)
    flat: dict[str, Tensor] = {}
    seen = 0
    waiting: list[tuple[str, Mapping[Any, Any]]] = [("", state)]
    while waiting:
        prefix, inner = waiting.pop()
        seen += len(inner)
        if seen > _MOST_NAMES or prefix.count(".") > _DEEPEST:
            raise ModelError(f"{path}: the names of its weights are nested without end: {said(prefix)}")
        for key, value in inner.items():
            if isinstance(value, Tensor):
                flat[f"{prefix}{key}"] = _plain(value, f"{path}: {prefix}{key}")
        deeper = [(f"{prefix}{key}.", value) for key, value in inner.items() if isinstance(value, dict)]
        waiting += reversed(deeper)
    return flat


def _plain(tensor: Tensor, place: str) -> Tensor:
    """Return a tensor that has its numbers in memory, one by one. Raises ModelError for any other."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise ModelError(
            f"{place} is a quantised, sparse or empty tensor, not plain weights",
            hint="Use the checkpoint that it was made of.",
        )
    return tensor
