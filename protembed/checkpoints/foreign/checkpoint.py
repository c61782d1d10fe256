"""What lies at a path: the weights, and the configuration and vocabulary beside them."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from protembed.checkpoints.foreign import megatron_ranks as ranks
from protembed.checkpoints.foreign.tensors import Joined, TorchFile, Weights
from protembed.checkpoints.tensor_file import SafetensorsFile
from protembed.errors import ModelError

Variant = Literal["trained", "tape-port"]
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_FILES = ("model.safetensors", "pytorch_model.bin")
_LOOSE = ("*.safetensors", "*.pt", "*.pth", "data/weights/*.pth")


@dataclass(frozen=True, kw_only=True)
class Told:
    """What the user says about a checkpoint that it may not say itself."""

    variant: Variant | None = None
    checkpoint_version: float | None = None
    n_heads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """A foreign checkpoint, opened: nothing of its weights is read yet."""

    path: Path
    weights: Weights
    config: Mapping[str, Any]
    header: Mapping[str, Any]
    vocabulary: tuple[str, ...] | None

    @property
    def name(self) -> str:
        """A name for the model, from the path: a folder's or file's, whose own says more than `iter_0001000`."""
        path = Path(os.path.abspath(self.path))
        if path.parent.name == "snapshots":  # the cache of the Hugging Face hub
            return path.parent.parent.name.split("--")[-1]
        path = ranks.named_part(path)
        return path.stem if path.is_file() else path.name

    def value(self, key: str) -> Any:
        """Return one value of config.json. Raises ModelError when it is not there."""
        if key not in self.config:
            raise ModelError(f"{self.path}: config.json does not give {key}", hint="Is the folder complete?")
        return self.config[key]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor. Raises ModelError when it is not there."""
        if name not in self.weights.specs:
            raise ModelError(f"{self.path}: {name} is missing", hint="Is the file complete?")
        return self.weights.specs[name].shape

    def has(self, prefix: str) -> bool:
        """Tell whether the name of any tensor begins so."""
        return any(name.startswith(prefix) for name in self.weights.specs)


def open_source(path: Path) -> Source:
    """Open a file or folder of any known form. Raises ModelError."""
    if not path.exists():
        raise ModelError(f"{path}: no such file or folder")
    weights: Weights
    header: Mapping[str, Any] = {}
    if files := ranks.find(path):
        weights = ranks.Ranks(files)
        header = weights.header
    else:
        parts = [_open(file) for file in _weight_files(path)]
        weights = parts[0] if len(parts) == 1 else Joined(parts)
        header = next((part.header for part in parts if isinstance(part, TorchFile)), {})
    folder = path if path.is_dir() else path.parent
    return Source(path=path, weights=weights, config=_config(folder), header=header, vocabulary=_vocabulary(folder))


def _open(path: Path) -> SafetensorsFile | TorchFile:
    return SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)


def _weight_files(path: Path) -> list[Path]:
    """Find the files that hold the weights: shards by their index; fair-esm's contacts lie in a file of their own."""
    if path.is_dir():
        for index in _INDEXES:
            if (path / index).is_file():
                return _shards(path / index)
        path = _single_file(path)
    contacts = path.with_name(f"{path.stem}-contact-regression{path.suffix}")
    return [path, contacts] if contacts.is_file() else [path]


def _shards(index: Path) -> list[Path]:
    try:
        files = sorted({index.parent / name for name in _read_json(index)["weight_map"].values()})
    except (KeyError, AttributeError) as error:
        raise ModelError(f"{index}: does not list the shards under weight_map") from error
    if missing := [file for file in files if not file.is_file()]:
        raise ModelError(f"{missing[0]}: this shard is missing", hint=f"{index.name} names {len(files)} of them.")
    return files


def _single_file(folder: Path) -> Path:
    for name in _FILES:
        if (folder / name).is_file():
            return folder / name
    loose = [file for pattern in _LOOSE for file in sorted(folder.glob(pattern))]
    loose = [file for file in loose if not file.stem.endswith("-contact-regression")]
    if len(loose) != 1:
        found = f"several: {', '.join(file.name for file in loose)}" if loose else "none"
        raise ModelError(f"{folder}: expected one file of weights and found {found}", hint="Name the file itself.")
    return loose[0]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path}: is not a JSON object")
    return values


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return _read_json(path) if path.is_file() else {}


def _vocabulary(folder: Path) -> tuple[str, ...] | None:
    """Read the tokens in the order of their rows, from vocab.txt or tokenizer.json."""
    if (path := folder / "vocab.txt").is_file():
        return tuple(path.read_text(encoding="utf-8").split())
    if (path := folder / "tokenizer.json").is_file():
        rows = (_read_json(path).get("model") or {}).get("vocab")
        if isinstance(rows, dict) and sorted(rows.values()) == list(range(len(rows))):
            return tuple(sorted(rows, key=lambda token: int(rows[token])))
    return None
