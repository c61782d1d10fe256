"""A graph into an ONNX file: header and nodes first, weights last, those past 2 GB in a file beside it.

The numbers of the fields are those of onnx.proto, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from protembed import __version__
from protembed.backends.onnx.attention import AttentionKind
from protembed.backends.onnx.builder import DTYPES, MICROSOFT, OPSET, Array, Attribute, Graph, Node, Value, Weights
from protembed.backends.onnx.contents import COMPANION
from protembed.backends.onnx.header import KEY, Header
from protembed.backends.onnx.protobuf import Buffer, Message
from protembed.backends.onnx.signature import describe
from protembed.models.config import ModelCard
from protembed.models.head_config import HeadCard

LARGEST = 2**31 - 2**20
"""Bytes of a file: protobuf ends at 2 GB. Weights that do not fit lie in `NAME.onnx.data`."""

INLINE = 4096
"""Weights up to so many bytes count as constants of the graph: they are copied into a cut one, larger ones are not."""

_IR_VERSION = 9  # of the file format; the one that came with opset 20


def write_onnx(
    path: Path,
    graph: Graph,
    card: ModelCard,
    *,
    attention: AttentionKind,
    weights: Weights,
    heads: Sequence[HeadCard] = (),
    source: str = "",
    largest: int = LARGEST,
) -> list[Path]:
    """Write a graph to `path`; return what was written: one file, two when it has more than `largest` bytes."""
    arrays = {name: np.asarray(values, order="C") for name, values in graph.weights.items()}
    header = Header(
        attention=attention,
        weights=weights,
        digest=digest_of(arrays),
        graph=digest_of_graph(graph, arrays),
        card=card,
        heads=tuple(heads),
        source=source,
    )
    data = path.with_name(f"{path.stem}{COMPANION}") if sum(a.nbytes for a in arrays.values()) > largest else None
    body = _graph(graph, card.name)
    if data is None:
        for name, array in arrays.items():
            body.add(5, make_whole_tensor(name, array))
    else:
        with data.open("wb") as file:
            for name, array in arrays.items():
                body.add(5, _distant(name, array, file, data.name))
    doc = describe(card, graph.inputs, graph.outputs, attention=attention, weights=weights, heads=heads)
    entries = [(14, Message((1, key), (2, text))) for key, text in header.to_metadata().items()]
    with path.open("wb") as file:
        file.writelines(_model(graph, body, (6, doc), *entries).parts)
    return [path] if data is None else [path, data]


def serialise(graph: Graph) -> bytes:
    """Return a graph as an ONNX model without a header, for a runtime to read from memory."""
    body = _graph(graph, "graph")
    for name, array in graph.weights.items():
        body.add(5, make_whole_tensor(name, array))
    return b"".join(_model(graph, body).parts)


def digest_of(weights: Mapping[str, Array]) -> str:
    """Return the sha256 of stored weights: of every name, type, shape and its bytes, in order."""
    state = hashlib.sha256()
    for name, array in weights.items():
        feed_tensor(state, name, str(array.dtype), array.shape, raw(array))
    return state.hexdigest()


def digest_of_graph(graph: Graph, arrays: Mapping[str, Array]) -> str:
    """Return the sha256 of all that a graph is beside its large weights; see `feed_graph`."""
    state = hashlib.sha256()
    values = [*graph.inputs.items(), *graph.outputs.items()]
    feed_graph(state, (message for message in _opsets(graph)), (make_value(name, value) for name, value in values))
    feed_graph(state, (make_node(node) for node in graph.nodes))
    for name, array in arrays.items():
        if array.nbytes <= INLINE:
            feed_tensor(state, name, str(array.dtype), array.shape, raw(array))
    return state.hexdigest()


def feed_graph(state: "hashlib._Hash", *groups: Iterable[Message | Buffer]) -> None:
    """Digest messages: the versions of the operators, inputs, outputs, then nodes, each in order."""
    for message in chain(*groups):
        data = b"".join(message.parts) if isinstance(message, Message) else message
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)


def feed_tensor(state: "hashlib._Hash", name: str, dtype: str, shape: tuple[int, ...], *data: Buffer) -> None:
    """Digest a weight: its name, type and shape, and its bytes."""
    state.update(f"{name} {dtype} {shape}\n".encode())
    for piece in data:
        state.update(piece)


def raw(array: Array) -> memoryview:
    """Return the bytes of an array, not copied."""
    data: Any = array.reshape(-1).view(np.uint8)
    return memoryview(data)


def make_tensor(name: str, dtype: int, shape: tuple[int, ...]) -> Message:
    """Return a tensor without its values."""
    return Message(*((1, size) for size in shape), (2, dtype), (8, name))


def add_place(tensor: Message, file: str, offset: int, size: int) -> Message:
    """Say in which file the values of a tensor stand, and where."""
    for key, value in (("location", file), ("offset", str(offset)), ("length", str(size))):
        tensor.add(13, Message((1, key), (2, value)))
    tensor.add(14, 1)
    return tensor


def _model(graph: Graph, body: Message, *header: tuple[int, Message | str]) -> Message:
    """Wrap a graph; the header comes before it, so that it can be read without it."""
    opsets = [(8, opset) for opset in _opsets(graph)]
    return Message((1, _IR_VERSION), (2, KEY), (3, __version__), *header, *opsets, (7, body))


def _opsets(graph: Graph) -> list[Message]:
    """Return the versions of the operators, by domain."""
    used = {node.domain for node in graph.nodes}
    domains = {"": OPSET, MICROSOFT: 1} if MICROSOFT in used else {"": OPSET}
    return [Message((1, domain), (2, number)) for domain, number in domains.items()]


def _graph(graph: Graph, name: str) -> Message:
    """Write a graph without its weights."""
    body = Message(*((1, make_node(node)) for node in graph.nodes), (2, name))
    for number, values in ((11, graph.inputs), (12, graph.outputs)):
        for title, value in values.items():
            body.add(number, make_value(title, value))
    return body


def make_whole_tensor(name: str, array: Array) -> Message:
    """Return a tensor with its values, which are not copied."""
    tensor = make_tensor(name, DTYPES[array.dtype.name], array.shape)
    tensor.add(9, raw(array))
    return tensor


def _distant(name: str, array: Array, file: BinaryIO, title: str) -> Message:
    """Write the values of a tensor into another file, from a multiple of 4,096 on so that they can be mapped."""
    file.seek(-file.tell() % 4096, 1)
    offset = file.tell()
    file.write(raw(array))
    return add_place(make_tensor(name, DTYPES[array.dtype.name], array.shape), title, offset, array.nbytes)


def make_node(node: Node) -> Message:
    """Return an operator."""
    names = [(1, name) for name in node.inputs] + [(2, name) for name in node.outputs]
    attributes = [(5, _attribute(name, value)) for name, value in node.attributes.items()]
    domain = [(7, node.domain)] if node.domain else []
    return Message(*names, (4, node.operator), *attributes, *domain)


def _attribute(name: str, value: Attribute) -> Message:
    message = Message((1, name))
    match value:
        case tuple():
            for entry in value:
                message.add(8, entry)
            message.add(20, 7)
        case int():
            message.add(3, value)
            message.add(20, 2)
        case float():
            message.add(2, value)
            message.add(20, 1)
        case _:
            message.add(4, value)
            message.add(20, 3)
    return message


def make_value(name: str, value: Value) -> Message:
    """Describe an input or output; field 2 of a dimension is a name, field 1 a size."""
    dimensions = (Message((2 if isinstance(size, str) else 1, size)) for size in value.shape)
    shape = Message(*((1, dimension) for dimension in dimensions))
    return Message((1, name), (2, Message((1, Message((1, DTYPES[value.dtype]), (2, shape))))))
