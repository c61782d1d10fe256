"""What lies at a path: the weights, and the configuration and vocabulary beside them."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from protembed.checkpoints.foreign import adapter
from protembed.checkpoints.foreign import megatron_ranks as ranks
from protembed.checkpoints.foreign.alphabets import fit
from protembed.checkpoints.foreign.config_keys import Keys, read_keys
from protembed.checkpoints.foreign.tensors import Joined, TorchFile, Weights
from protembed.checkpoints.foreign.vocabulary import read_vocabulary
from protembed.checkpoints.header import in_file
from protembed.checkpoints.hub import shard_names
from protembed.checkpoints.tensor_file import SafetensorsFile
from protembed.errors import ModelError, UsageError
from protembed.models.config import EncoderConfig
from protembed.schema import build, read_object, said
from protembed.sequences.alphabet import Alphabet

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

    @property
    def config_place(self) -> str:
        """How errors name the configuration."""
        return f"{self.path}: config.json"

    def settings(self, keys: Keys) -> dict[str, Any]:
        """Return what config.json says, checked against what the family makes of every key. Raises ModelError."""
        return read_keys(self.config, keys, self.config_place)

    def options(self, keys: Keys) -> dict[str, Any] | None:
        """Return the options of the program that wrote the file, `args` or `cfg.model`; None where it holds none.

        They are hundreds, most of them of training: `keys` names those that change the function.
        """
        config = self.header.get("cfg")
        found: Any = config.get("model") if isinstance(config, dict) else self.header.get("args")
        if found is None:
            return None
        values = vars(found) if isinstance(found, argparse.Namespace) else found
        if not isinstance(values, dict):
            raise ModelError(f"{self.path}: its options are {said(found)}, not names and values")
        named = {name: value for name, value in values.items() if isinstance(name, str)}
        return read_keys(named, keys, f"{self.path}: its options", complete=False)

    def encoder(self, **fields: Any) -> EncoderConfig:
        """Return the configuration of the encoder, each value of its type and within bounds. Raises ModelError."""
        return build(EncoderConfig, fields, str(self.path))

    def alphabet(self, known: Alphabet, rows: int, *, padded: Sequence[int] = (), named: bool = True) -> Alphabet:
        """Return the alphabet for an embedding of so many rows: that of the vocabulary file, or the known one.

        `named=False`: the form has no vocabulary file, and one that lies there must say the same. Raises ModelError
        for a vocabulary that is not of residues.
        """
        with in_file(self.path):
            if not named and self.vocabulary is not None and self.vocabulary[: len(known)] != known.tokens:
                raise ModelError(
                    "the vocabulary file beside it is not that of this kind of model",
                    hint="If it belongs to another model, put the two into folders of their own.",
                )
            return fit(known, rows, self.vocabulary if named else None, padded=padded)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor. Raises ModelError when it is not there."""
        if name not in self.weights.specs:
            raise ModelError(f"{self.path}: {name} is missing", hint="Is the file complete?")
        return self.weights.specs[name].shape

    def has(self, prefix: str) -> bool:
        """Tell whether the name of any tensor begins so."""
        return any(name.startswith(prefix) for name in self.weights.specs)


def number_of_heads(source: Source, told: Told, stated: int | None, *, example: str = "") -> int:
    """Return the number of attention heads, which no shape tells: as the file says, else as the user does.

    Raises ModelError when neither does, UsageError when they differ.
    """
    if told.n_heads is not None and stated is not None and told.n_heads != stated:
        raise UsageError(f"{source.path}: has {stated} attention heads, as it says itself, not {told.n_heads}")
    found = told.n_heads if stated is None else stated
    if found is not None and found < 1:
        raise UsageError(f"{source.path}: {found} attention heads are no number of heads", hint="It is 1 or more.")
    if found is None:
        raise ModelError(
            f"{source.path}: the number of attention heads is not in the file, nor in a config.json beside it",
            hint=f"Give it: n_heads= in Python, --n-heads on the command line{example}.",
        )
    return found


def open_source(path: Path) -> Source:
    """Open a file or folder of any known form, an adapter beside it merged into the weights. Raises ModelError."""
    if not path.exists():
        raise ModelError(f"{path}: no such file or folder")
    place, added = path, adapter.find(path)
    if added is not None and not _holds_model(path):
        place = added.base()
    weights: Weights
    header: Mapping[str, Any] = {}
    if files := ranks.find(place):
        weights = ranks.Ranks(files)
        header = weights.header
    else:
        parts = [_open(file) for file in _weight_files(place)]
        weights = parts[0] if len(parts) == 1 else Joined(parts)
        header = next((part.header for part in parts if isinstance(part, TorchFile)), {})
    if added is not None:
        weights = adapter.Merged(weights, added, _open(added.file))
    folder = place if place.is_dir() else place.parent
    return Source(path=path, weights=weights, config=_config(folder), header=header, vocabulary=read_vocabulary(folder))


def _holds_model(path: Path) -> bool:
    """Tell whether a folder with an adapter, or the file beside one, holds the weights of the model, too."""
    if path.is_file():
        return not adapter.is_part(path)
    names = (*_INDEXES, *_FILES)
    loose = (file for pattern in _LOOSE for file in path.glob(pattern) if not adapter.is_part(file))
    return any((path / name).is_file() for name in names) or next(loose, None) is not None


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
    files = [index.parent / name for name in shard_names(index)]
    if missing := [file for file in files if not file.is_file()]:
        raise ModelError(f"{missing[0]}: this shard is missing", hint=f"{index.name} names {len(files)} of them.")
    return files


def _single_file(folder: Path) -> Path:
    for name in _FILES:
        if (folder / name).is_file():
            return folder / name
    loose = [file for pattern in _LOOSE for file in sorted(folder.glob(pattern))]
    loose = [file for file in loose if not file.stem.endswith("-contact-regression") and not adapter.is_part(file)]
    if len(loose) != 1:
        found = f"several: {', '.join(file.name for file in loose)}" if loose else "none"
        raise ModelError(f"{folder}: expected one file of weights and found {found}", hint="Name the file itself.")
    return loose[0]


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return read_object(path) if path.is_file() else {}
