"""The forms in which a graph runs: with masks or without, its attention in one call or in pieces."""

from collections.abc import Iterable, Iterator

from protembed.backends.onnx.builder import Attribute
from protembed.backends.onnx.builder import Node as Drawn
from protembed.backends.onnx.contents import Node
from protembed.backends.onnx.protobuf import Message, read_fields
from protembed.backends.onnx.writer import make_node

PIECES = 32
"""Into so many calls the attention of a huge protein is cut: a signal ends the run between two of them."""

_ATTENTION = "MultiHeadAttention"


def encode(node: Drawn) -> Node:
    """Return a drawn node as one of a file."""
    data = b"".join(make_node(node).parts)
    return Node(operator=node.operator, inputs=node.inputs, outputs=node.outputs, data=data)


def transform(nodes: Iterable[Node], *, padded: bool, in_pieces: bool) -> Iterator[Node]:
    """Yield the nodes of a graph in another form; see OnnxFile.cut."""
    for node in nodes:
        masks, attends = node.masks and not padded, node.operator == _ATTENTION
        if masks and not attends:
            yield _new("Identity", node.inputs[:1], node.outputs)
        elif attends and in_pieces:
            yield from _in_pieces(node, node.inputs[:3] if masks else node.inputs)
        elif masks:
            yield _moved(node, node.inputs[:3], node.outputs)
        else:
            yield node


def needed(nodes: Iterable[Node], wanted: Iterable[str]) -> tuple[list[Node], set[str]]:
    """Return the nodes that some values need, in order, and all values that these read."""
    values, kept = set(wanted), list[Node]()
    for node in reversed(list(nodes)):
        if values.intersection(node.outputs):
            values.update(name for name in node.inputs if name)
            kept.append(node)
    return kept[::-1], values


def _in_pieces(node: Node, inputs: tuple[str, ...]) -> Iterator[Node]:
    """Attend with a share of the queries at a time; each sees all keys, so that the result is the same."""
    queries, *rest = inputs
    shares = tuple(f"{node.outputs[0]}.queries.{number}" for number in range(PIECES))
    results = tuple(f"{node.outputs[0]}.{number}" for number in range(PIECES))
    yield _new("Split", (queries,), shares, axis=1, num_outputs=PIECES)
    for share, result in zip(shares, results, strict=True):
        yield _moved(node, (share, *rest), (result,))
    yield _new("Concat", results, node.outputs, axis=1)


def _new(operator: str, inputs: tuple[str, ...], outputs: tuple[str, ...], **attributes: Attribute) -> Node:
    return encode(Drawn(operator=operator, inputs=inputs, outputs=outputs, attributes=attributes))


def _moved(node: Node, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Node:
    """Return a node that reads and writes other values."""
    names = [(1, name) for name in inputs] + [(2, name) for name in outputs]
    kept = [(part.number, part.value) for part in read_fields(memoryview(node.data)) if part.number in (4, 5, 7)]
    data = b"".join(Message(*names, *kept).parts)
    return Node(operator=node.operator, inputs=inputs, outputs=outputs, data=data)
