"""What stands in an ONNX file: its header, nodes and values, and where the bytes of its weights are.

Nothing that a file says is believed. Counts and sizes are bounded before memory is taken for them, only operators that
protembed writes are let through, and weights lie in the file itself or in its one companion, `NAME.onnx.data`.
"""

from dataclasses import dataclass, field
from math import prod

import numpy as np

from protembed.backends.onnx.builder import DTYPES, MASK, MICROSOFT
from protembed.backends.onnx.protobuf import Buffer, Field, read_fields

COMPANION = ".onnx.data"
"""How the name of a second file ends, which holds the weights of a model of more than 2 GB."""

OPERATORS = {
    "": {
        *("Abs", "Add", "And", "BatchNormalization", "Cast", "Concat", "Conv", "Cos", "Div", "DynamicQuantizeLinear"),
        *("Equal", "Gather", "Gelu", "Gemm", "GreaterOrEqual", "Identity", "LayerNormalization", "Less", "Log"),
        *("MatMul", "MatMulInteger", "Max", "Min", "Mul", "Not", "Pad", "Pow", "Range", "ReduceMax", "ReduceMean"),
        *("ReduceSum", "Relu", "Reshape", "ScatterElements", "Shape", "Sigmoid", "Sin", "Slice", "Softmax", "Sqrt"),
        *("Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where"),
    },
    MICROSOFT: {"MultiHeadAttention", "PackedMultiHeadAttention", "RotaryEmbedding"},
}
"""What protembed draws graphs with, by domain: no loops, no code, nothing that makes much out of little."""

_MOST = 100_000  # nodes or weights: the largest model that is known has 2,000
_LONGEST_TEXT = 2**24  # bytes of the header
_DIMENSIONS = 8
_LARGEST_SIZE = 2**40

_NAMES = {number: name for name, number in DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A weight: its name, type and shape, and where its bytes stand: in the file itself, or in the one named."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Node:
    """An operator: what it reads and writes, and its own bytes."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    data: Buffer

    @property
    def masks(self) -> bool:
        """Whether it is there for padding alone: see Drawing.masked."""
        return self.outputs[0].rpartition("/")[2].startswith(MASK)


@dataclass(kw_only=True)
class Contents:
    """All of a file that is used: texts of its metadata, versions, and the graph."""

    texts: dict[str, str] = field(default_factory=dict)
    versions: list[tuple[int, int | memoryview]] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    inputs: dict[str, Buffer] = field(default_factory=dict)
    outputs: dict[str, Buffer] = field(default_factory=dict)


def read_contents(data: memoryview) -> Contents:
    """Read a file. Raises ValueError, LookupError or TypeError for one that is damaged or not of ours."""
    contents, graphs = Contents(), []
    for part in read_fields(data):
        match part.number:
            case 1 | 8:  # ir_version, opset_import
                contents.versions.append((part.number, part.value))
            case 7:
                graphs.append(part)
            case 14:
                _read_text(contents.texts, part)
        _require(len(contents.versions) + len(contents.texts) < 1000, "too many entries")
    _require(len(graphs) <= 1, "two graphs")
    for graph in graphs:
        for part in read_fields(data, graph.inside, graph.stop):
            _read_part(contents, data, part)
    return contents


def _read_text(texts: dict[str, str], part: Field) -> None:
    """Read an entry of the metadata."""
    _require(len(part.data) <= _LONGEST_TEXT, "a text of more than 16 MB")
    entry = {piece.number: piece.text for piece in read_fields(part.data)}
    _require(entry[1] not in texts, f"{entry[1][:50]!r} twice")
    texts[entry[1]] = entry.get(2, "")


def _read_part(contents: Contents, data: memoryview, part: Field) -> None:
    """Read one field of the graph."""
    match part.number:
        case 1:
            contents.nodes.append(_read_node(part.data))
            _require(len(contents.nodes) <= _MOST, "too many nodes")
        case 5:
            contents.tensors.append(_read_tensor(data, part))
            _require(len(contents.tensors) <= _MOST, "too many weights")
        case 11 | 12:
            (name, *_) = (piece.text for piece in read_fields(part.data) if piece.number == 1)
            values = contents.inputs if part.number == 11 else contents.outputs
            _require(name not in values and len(values) < _MOST, f"{name[:50]!r} twice, or too many values")
            values[name] = part.data
        case 15:
            raise ValueError("sparse weights")


def _read_node(data: memoryview) -> Node:
    inputs, outputs, operator, domain = [], [], "", ""
    for piece in read_fields(data):
        match piece.number:
            case 1:
                inputs.append(piece.text)
            case 2:
                outputs.append(piece.text)
            case 4:
                operator = piece.text
            case 7:
                domain = piece.text
    if operator not in OPERATORS.get(domain, ()):
        raise ValueError(f"the operator {f'{domain}.{operator}'.lstrip('.')[:50]!r} is none that protembed writes")
    _require(bool(outputs), f"{operator} without an output")
    return Node(operator=operator, inputs=tuple(inputs), outputs=tuple(outputs), data=data)


def _read_tensor(data: memoryview, whole: Field) -> Tensor:
    """Note where the bytes of a weight stand."""
    shape, dtype, name, offset, size = [], 0, "", 0, 0
    places: dict[str, str] = {}
    for part in read_fields(data, whole.inside, whole.stop):
        match part.number, part.value:
            case 1, int(length):
                shape.append(length)
                _require(len(shape) <= _DIMENSIONS and length <= _LARGEST_SIZE, f"a shape of {len(shape)} dimensions")
            case 2, int(number):
                dtype = number
            case 8, _:
                name = part.text
            case 9, _:
                offset, size = part.inside, part.stop - part.inside
            case 13, _:
                key, value = (entry.text for entry in read_fields(part.data))
                places[key] = value
    file = ""
    if places:
        file, offset, size = places["location"], _read_size(places["offset"]), _read_size(places["length"])
        _require(file.endswith(COMPANION) and "/" not in file, f"its weights are said to lie in {file[:100]!r}")
    _require(prod(shape) * np.dtype(_NAMES[dtype]).itemsize == size, f"{name[:50]!r} has {size} bytes")
    return Tensor(name=name, dtype=_NAMES[dtype], shape=tuple(shape), file=file, offset=offset, size=size)


def _read_size(text: str) -> int:
    _require(len(text) < 19 and text.isascii() and text.isdecimal(), f"a size of {text[:50]!r}")
    return int(text)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
