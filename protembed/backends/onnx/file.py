"""An ONNX file that protembed wrote: its header, and the part of its graph that some outputs need.

The file is mapped, not read: nothing here is as large as the weights, and the runtime maps them in its turn.
"""

import json
import mmap
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path

import numpy as np

from protembed.backends.onnx.builder import DTYPES, Graph
from protembed.backends.onnx.heads import output_name
from protembed.backends.onnx.protobuf import Field, Message, read_fields
from protembed.backends.onnx.writer import (
    FORMAT,
    KEY,
    Header,
    add_place,
    make_node,
    make_tensor,
    make_value,
    make_whole_tensor,
)
from protembed.errors import ModelError

INLINE = 4096
"""Tensors up to so many bytes are copied into a cut graph, larger ones stay where they are."""

_PIECE = 2**20

_NAMES = {number: name for name, number in DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    """A weight: its name, type and shape, and where its bytes stand in which file."""

    name: str
    dtype: int
    shape: tuple[int, ...]
    file: str
    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class _Node:
    """An operator: what it reads and writes, and its own bytes."""

    inputs: frozenset[str]
    outputs: frozenset[str]
    data: memoryview


class OnnxFile:
    """The header, nodes and places of the weights of one file.

    Raises ModelError when it is cut short, foreign, of another version, or its second file is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._nodes: list[_Node] = []
        self._tensors: list[_Tensor] = []
        self._inputs: dict[str, memoryview] = {}
        self._outputs: dict[str, memoryview] = {}
        self._added: dict[str, Message] = {}
        self._files = {path.name: self._map(path)}
        try:
            self.header = self._read()
        except (ValueError, LookupError, TypeError) as error:
            raise ModelError(
                f"{path}: cannot be read as ONNX ({error})", hint="Is the file complete? Copy or export it again."
            ) from error
        for tensor in self._tensors:
            self._check_place(tensor)

    @property
    def folder(self) -> Path:
        """Where the weights are, links followed: onnxruntime refuses those that lead elsewhere."""
        return self.path.resolve().parent

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs of the graph."""
        return list(self._inputs)

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs of the graph: hidden.0, hidden.1, ..., and logits, pooled, task.* where they are."""
        return list(self._outputs)

    def lacks(self, graph: Graph) -> set[str]:
        """Return the values that a graph reads and that neither itself nor the file has."""
        known = {*self._inputs, *graph.weights, ""}.union(*(node.outputs for node in self._nodes))
        known.update(name for node in graph.nodes for name in node.outputs)
        return {name for node in graph.nodes for name in node.inputs} - known

    def add(self, graph: Graph) -> None:
        """Put a graph behind that of the file, in memory: it reads values of the file's, and `lacks` nothing."""
        for node in graph.nodes:
            data = memoryview(b"".join(make_node(node).parts))
            inputs, outputs = frozenset(node.inputs) - {""}, frozenset(node.outputs)
            self._nodes.append(_Node(inputs=inputs, outputs=outputs, data=data))
        self._added |= {name: make_whole_tensor(name, np.asarray(a, order="C")) for name, a in graph.weights.items()}
        for name, value in graph.outputs.items():
            self._outputs[name] = memoryview(b"".join(make_value(name, value).parts))

    def verify(self) -> None:
        """Raise ModelError unless the weights are those that the header speaks of."""
        state = sha256()
        for tensor in self._tensors:
            state.update(f"{tensor.name} {_NAMES[tensor.dtype]} {tensor.shape}\n".encode())
            for piece in self._read_pieces(tensor):
                state.update(piece)
        if state.hexdigest() != self.header.digest:
            raise ModelError(
                f"{self.path}: the weights do not match their checksum",
                hint="The file is damaged: copy or export it again.",
            )

    def cut(self, wanted: Collection[str], *, unsigned: bool = False) -> bytes:
        """Return a model with no more than what some outputs need; its large weights are named by their place.

        The places are relative to `folder`. With `unsigned` weights of 8 bits lose their sign, and their zero
        is 128: the same product.
        """
        needed, kept = set(wanted), list[_Node]()
        for node in reversed(self._nodes):
            if node.outputs & needed:
                kept.append(node)
                needed |= node.inputs
        graph = Message(*((1, node.data) for node in reversed(kept)), (2, self.header.card.name))
        for tensor in self._tensors:
            if tensor.name in needed:
                graph.add(5, self._refer(tensor, unsigned=unsigned))
        for name, message in self._added.items():
            if name in needed:
                graph.add(5, message)
        for data in self._inputs.values():
            graph.add(11, data)
        for name in wanted:
            graph.add(12, self._outputs[name])
        head = (field for field in read_fields(self._files[self.path.name]) if field.number in (1, 8))
        model = Message(*((field.number, field.value) for field in head), (7, graph))
        return b"".join(model.parts)

    def _map(self, path: Path) -> memoryview:
        try:
            with path.open("rb") as file:
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is empty"
            raise ModelError(f"{path}: cannot be read ({reason})", hint="Copy or export it again.") from error

    def _read(self) -> Header:
        """Read the header and take note of what the graph holds."""
        data, header, graph = self._files[self.path.name], None, None
        for field in read_fields(data):
            if field.number == 14:
                entry = {part.number: part.text for part in read_fields(field.data)}
                if entry.get(1) == KEY:
                    header = self._header(json.loads(entry[2]))
            elif field.number == 7:
                graph = field
        if header is None:
            raise ModelError(
                f"{self.path}: was not written by protembed, or lost its metadata",
                hint="protembed export MODEL -o FILE.onnx writes one from a checkpoint.",
            )
        if graph is None:
            raise ValueError("no graph")
        for field in read_fields(data, graph.inside, graph.stop):
            self._note(field)
        promised = [f"hidden.{layer}" for layer in range(header.card.encoder.n_layers + 1)]
        promised += [output_name(head.task) for head in header.heads]
        if absent := [name for name in promised if name not in self._outputs]:
            raise ValueError(f"its graph has no output {absent[0]}")
        return header

    def _header(self, values: dict[str, object]) -> Header:
        if (number := values.get("format")) != FORMAT:
            newer = isinstance(number, int) and number > FORMAT
            raise ModelError(
                f"{self.path}: was exported by another version of protembed ({values.get('tool_version')})",
                hint="pip install --upgrade protembed" if newer else "Export it again: protembed export MODEL -o FILE",
            )
        return Header.from_dict(values)

    def _note(self, field: Field) -> None:
        match field.number:
            case 1:
                parts = list(read_fields(field.data))
                inputs, outputs = (frozenset(part.text for part in parts if part.number == n) for n in (1, 2))
                self._nodes.append(_Node(inputs=inputs - {""}, outputs=outputs, data=field.data))
            case 5:
                self._tensors.append(self._tensor(field))
            case 11 | 12:
                (name, *_) = (part.text for part in read_fields(field.data) if part.number == 1)
                (self._inputs if field.number == 11 else self._outputs)[name] = field.data

    def _tensor(self, field: Field) -> _Tensor:
        """Note where the bytes of a weight stand: in this file, or in the one that it names."""
        shape, dtype, name, offset, size = [], 0, "", 0, 0
        entries: dict[str, str] = {}
        for part in read_fields(self._files[self.path.name], field.inside, field.stop):
            match part.number, part.value:
                case 1, int(length):
                    shape.append(length)
                case 2, int(number):
                    dtype = number
                case 8, _:
                    name = part.text
                case 9, _:
                    offset, size = part.inside, part.stop - part.inside
                case 13, _:
                    pair = [entry.text for entry in read_fields(part.data)]
                    entries[pair[0]] = pair[1]
        file = entries.get("location", self.path.name)
        if entries:
            offset, size = int(entries["offset"]), int(entries["length"])
        if prod(shape) * np.dtype(_NAMES[dtype]).itemsize != size:
            raise ValueError(f"{name} has {size} bytes")
        return _Tensor(name=name, dtype=dtype, shape=tuple(shape), file=file, offset=offset, size=size)

    def _check_place(self, tensor: _Tensor) -> None:
        if Path(tensor.file).name != tensor.file:
            raise ModelError(f"{self.path}: its weights are said to lie in {tensor.file!r}, outside of its folder")
        beside = self.path.with_name(tensor.file)
        if tensor.file not in self._files:
            if not beside.is_file():
                raise ModelError(
                    f"{beside}: not there; it holds the weights of {self.path.name}",
                    hint="A model of more than 2 GB has two files: copy both.",
                )
            self._files[tensor.file] = self._map(beside)
        if tensor.offset + tensor.size > len(self._files[tensor.file]):
            raise ModelError(f"{beside}: is cut short", hint="Copy it again.")

    def _bytes(self, tensor: _Tensor) -> memoryview:
        return self._files[tensor.file][tensor.offset : tensor.offset + tensor.size]

    def _read_pieces(self, tensor: _Tensor) -> Iterator[bytes]:
        """Read the bytes of a weight without mapping them: mapped ones would count as memory of this process."""
        with self.path.with_name(tensor.file).open("rb") as file:
            file.seek(tensor.offset)
            for start in range(0, tensor.size, _PIECE):
                yield file.read(min(_PIECE, tensor.size - start))

    def _refer(self, tensor: _Tensor, *, unsigned: bool) -> Message:
        """Describe a weight by its place; with its bytes when it is small or has to lose its sign."""
        flip = unsigned and _NAMES[tensor.dtype] == "int8"
        message = make_tensor(tensor.name, DTYPES["uint8"] if flip else tensor.dtype, tensor.shape)
        if flip:
            message.add(9, (np.frombuffer(self._bytes(tensor), dtype=np.uint8) ^ 128).tobytes())
        elif tensor.size <= INLINE:
            message.add(9, self._bytes(tensor))
        else:
            place = self.path.with_name(tensor.file).resolve()
            add_place(message, place.name, tensor.offset, tensor.size)
        return message
