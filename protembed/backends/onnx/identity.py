"""Which weights a checkpoint holds, told by all of its bytes and without torch.

Path, size and time do not tell: layers of containers and images of clusters give other files the same ones, inode
numbers included, and a digest of samples misses a changed layer. So everything is read, about a second per 2 GB, as
torch would read it, too; the bundled model takes 20 ms.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from protembed.backends.onnx.attention import FREQUENCIES
from protembed.backends.onnx.contents import Tensor
from protembed.backends.onnx.file import OnnxFile
from protembed.backends.onnx.writer import INLINE
from protembed.errors import ModelError
from protembed.models.config import ModelCard

Numbers = npt.NDArray[Any]

_PIECE = 2**20
_KEY = "protembed"
_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BYTES = {"F32": 4, "F16": 2, "BF16": 2}

_RANK_FILE = "model_optim_rng.pt"
_SIDE_FILES = (
    *("config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"),
)
_DEPTHS = ("*", "*/*", "*/*/*")
_MOST_FILES = 10_000
_UNREAD = (".onnx", ".data", ".h5", ".msgpack", ".ot", ".md", ".png", ".lock", ".tmp")
"""Endings of what no reader of checkpoints opens."""


@dataclass(frozen=True, kw_only=True)
class _Spec:
    """One tensor of a native checkpoint: type, shape, and where in the file its bytes begin."""

    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * _BYTES[self.dtype]


class NativeFile:
    """A native checkpoint, opened: its card, and its weights as they are stored.

    Raises ValueError, LookupError, OSError or ModelError when it is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="np") as file:  # checks the header against the file
                metadata: Mapping[str, str] = file.metadata() or {}
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        values = json.loads(metadata[_KEY])
        values.pop("format", None)
        self.card = ModelCard.from_dict(values)
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            entries: dict[str, Any] = json.loads(file.read(size))
        entries.pop("__metadata__", None)
        self.specs = {
            name: _Spec(dtype=entry["dtype"], shape=tuple(entry["shape"]), start=8 + size + entry["data_offsets"][0])
            for name, entry in entries.items()
        }

    def verify(self) -> None:
        """Raise ModelError unless the weights are those that the card speaks of; see native.digest."""
        state = sha256()
        for name in sorted(self.specs):
            spec = self.specs[name]
            state.update(f"{name} torch.{_TYPES[spec.dtype]} {spec.shape}\n".encode())
            for piece in self._read(spec.start, spec.size):
                state.update(piece)
        if state.hexdigest() != self.card.sha256:
            raise ModelError(
                f"{self.path}: the weights do not match their checksum", hint="The file is damaged: copy it again."
            )

    def find(self, tensor: Tensor) -> tuple[str, Iterator[bytes]] | None:
        """Return the type and the bytes, in pieces, of what a weight of a graph is made of; None without it."""
        name, spec, start = tensor.name, self.specs.get(tensor.name), 0
        if spec is None:  # some rows of a tensor: see Drawing
            name, _, first = tensor.name.rpartition(".")
            name = "encoder.frequencies" if name == FREQUENCIES else name
            spec, start = self.specs.get(name), int(first) if first.isascii() and first.isdecimal() else 0
        if spec is None or tensor.shape[1:] != spec.shape[1:] or len(tensor.shape) != len(spec.shape):
            return None
        if start + (tensor.shape[0] if tensor.shape else 1) > (spec.shape[0] if spec.shape else 1):
            return None
        row = spec.size // max(1, spec.shape[0]) if spec.shape else spec.size
        size = int(np.prod(tensor.shape, dtype=np.int64)) * _BYTES[spec.dtype]
        return _TYPES[spec.dtype], self._read(spec.start + start * row, size)

    def _read(self, start: int, size: int) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(start)
            for done in range(0, size, _PIECE):
                yield file.read(min(_PIECE, size - done))


def holds_weights_of(file: OnnxFile, checkpoint: NativeFile) -> bool:
    """Tell whether every large weight of an ONNX file is one of a checkpoint's, number by number.

    What the header of the file says is not enough: anybody can write it.
    """
    for tensor in file.tensors:
        found = checkpoint.find(tensor)
        if found is None and tensor.size <= INLINE:
            continue  # a constant of the graph
        if found is None or tensor.dtype not in ("float32", "float16"):
            return False
        dtype, pieces = found
        same = dtype == tensor.dtype
        stored = (_to_numbers(piece, tensor.dtype, same) for piece in file.read_pieces(tensor))
        if not _equal(stored, (_to_numbers(piece, dtype, same) for piece in pieces)):
            return False
    return True


def _equal(left: Iterator[Numbers], right: Iterator[Numbers]) -> bool:
    """Compare two streams of numbers whose pieces need not be of one size."""
    x = y = np.empty(0)
    while True:
        x = x if len(x) else next(left, x)
        y = y if len(y) else next(right, y)
        count = min(len(x), len(y))
        if not count:
            return len(x) == len(y)
        if not np.array_equal(x[:count], y[:count]):
            return False
        x, y = x[count:], y[count:]


def _to_numbers(data: bytes, dtype: str, same: bool) -> Numbers:
    """Return numbers to be compared: as float32, or as they are where both sides are of the same type."""
    if same:
        return np.frombuffer(data, dtype=np.uint16)
    if dtype == "bfloat16":  # numpy has no such type: the upper half of a float32
        return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, dtype=dtype).astype(np.float32, copy=False)


def digest_of_files(checkpoint: Path) -> str:
    """Return the sha256 of names and content of all files of a foreign checkpoint that a reader may open."""
    state = sha256()
    for name, file in _files(checkpoint):
        content = sha256()
        with file.open("rb") as opened:
            while piece := opened.read(_PIECE):
                content.update(piece)
        state.update(f"{name}\0{content.hexdigest()}\n".encode())
    return state.hexdigest()


def sketch_of_files(checkpoint: Path) -> str:
    """Return a digest of names and sizes of the same files: what differs in it need not be read."""
    sizes = [checkpoint.absolute().name, *((name, file.stat().st_size) for name, file in _files(checkpoint))]
    return sha256(json.dumps(sizes).encode()).hexdigest()[:16]


def _files(checkpoint: Path) -> list[tuple[str, Path]]:
    """Return the files of a checkpoint by name: all in a folder, and those that say what it is."""
    folder = _folder(checkpoint)
    if folder is None:
        contacts = f"{checkpoint.stem}-contact-regression{checkpoint.suffix}"
        found = [checkpoint, *(checkpoint.with_name(name) for name in (*_SIDE_FILES, contacts))]
    else:
        found = list(islice((file for depth in _DEPTHS for file in folder.glob(depth)), _MOST_FILES + 1))
        if len(found) > _MOST_FILES:
            raise ModelError(f"{folder}: holds too many files", hint="Name the checkpoint's own folder.")
        found = [file for file in found if file.suffix not in _UNREAD and "/." not in f"/{file.relative_to(folder)}"]
        if folder != checkpoint and checkpoint.is_dir():
            found += [checkpoint / name for name in _SIDE_FILES]
    start = folder or checkpoint.parent
    return sorted((os.path.relpath(file, start), file) for file in found if file.is_file())


def _folder(checkpoint: Path) -> Path | None:
    """Return the folder that a checkpoint is; a rank of Megatron's belongs to the folder of all ranks."""
    if checkpoint.name == _RANK_FILE:
        return checkpoint.parent.parent
    if not checkpoint.is_dir():
        return None
    # Of several iterations one is read: the rule is that of megatron_ranks.py, which imports torch.
    tracker, iterations = checkpoint / "latest_checkpointed_iteration.txt", list(checkpoint.glob("iter_*"))
    if tracker.is_file():
        newest = tracker.read_text(encoding="utf-8", errors="replace").strip()
        iterations = [checkpoint / (newest if newest == "release" else f"iter_{newest.zfill(7)}")]
    return iterations[0] if len(iterations) == 1 and iterations[0].is_dir() else checkpoint
