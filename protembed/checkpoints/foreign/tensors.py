"""Weights of foreign files by name, read one tensor at a time so that a model is never in memory twice."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from protembed.checkpoints.foreign.unpickle import is_mappable, unpickle
from protembed.checkpoints.tensor_file import Spec
from protembed.errors import ModelError

# What is read of a mapped file stays in memory until the map is dropped and made anew: after so many bytes, or shares.
_WINDOW = 16 * 2**20
_MAPS = 64
_STATES = ("model", "state_dict", "model_state_dict")


class Weights(Protocol):
    """Named tensors of one checkpoint."""

    @property
    def specs(self) -> Mapping[str, Spec]:
        """What there is, without reading it."""

    def read(self, name: str) -> Tensor:
        """Return one tensor, once; it may be a view of the file: copy what is kept."""


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
        self._tensors = _state(content)
        self.specs = {name: Spec.of(tensor) for name, tensor in self._tensors.items()}
        self._window = max(_WINDOW, sum(tensor.nbytes for tensor in self._tensors.values()) // _MAPS)
        self._seen = 0

    def read(self, name: str) -> Tensor:
        if not self.mapped:
            return self._tensors.pop(name)
        if self._seen > self._window:
            self._tensors, self._seen = _state(unpickle(self.path)), 0
        self._seen += self._tensors[name].nbytes
        return self._tensors[name]


class Joined:
    """Several files as one, as with shards."""

    def __init__(self, parts: Sequence[Weights]) -> None:
        self._owner = {name: part for part in parts for name in part.specs}
        self.specs = {name: part.specs[name] for name, part in self._owner.items()}

    def read(self, name: str) -> Tensor:
        return self._owner[name].read(name)


class Renamed:
    """The same weights under other names."""

    def __init__(self, weights: Weights, rename: Callable[[str], str]) -> None:
        self._weights = weights
        self._names: dict[str, str] = {}
        for old in weights.specs:
            if self._names.setdefault(rename(old), old) != old:
                raise ModelError(f"the checkpoint holds two tensors for one: {self._names[rename(old)]} and {old}")
        self.specs = {name: weights.specs[old] for name, old in self._names.items()}

    def read(self, name: str) -> Tensor:
        return self._weights.read(self._names[name])


def _state(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Find the state dictionary and flatten it: nested names are joined by dots."""
    state = next((content[key] for key in _STATES if isinstance(content.get(key), dict)), content)
    return dict(_flatten(state, ""))


def _flatten(state: Mapping[Any, Any], prefix: str) -> list[tuple[str, Tensor]]:
    flat: list[tuple[str, Tensor]] = []
    for key, value in state.items():
        if isinstance(value, Tensor):
            flat.append((f"{prefix}{key}", value))
        elif isinstance(value, dict):
            flat += _flatten(value, f"{prefix}{key}.")
    return flat
