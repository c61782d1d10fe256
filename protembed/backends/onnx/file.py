"""An ONNX file that protembed wrote: its header, and the part of its graph that some outputs need.

The file is mapped, not read: nothing here is as large as the weights, and the runtime maps them in its turn.
"""

import mmap
import os
from collections.abc import Collection, Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np

from protembed.backends.onnx.builder import DTYPES, Graph
from protembed.backends.onnx.contents import Tensor, read_contents
from protembed.backends.onnx.forms import encode, needed, transform
from protembed.backends.onnx.header import Header
from protembed.backends.onnx.heads import output_name
from protembed.backends.onnx.protobuf import Message
from protembed.backends.onnx.writer import (
    INLINE,
    add_place,
    feed_graph,
    feed_tensor,
    make_tensor,
    make_value,
    make_whole_tensor,
)
from protembed.errors import ModelError

_PIECE = 2**20

_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading nonsense may raise."""

_ADVICE = "Is the file complete? Copy or export it again."


class OnnxFile:
    """The header, nodes and places of the weights of one file.

    Raises ModelError when it is cut short, foreign, of another version, or its second file is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._added: dict[str, Message] = {}
        self._states: dict[Path, os.stat_result] = {}
        data = self._map(path)
        self._files = {"": data}
        try:
            self._contents = read_contents(data)
            self.header = Header.from_metadata(self._contents.texts)
            self._check_graph()
        except ModelError as error:
            raise ModelError(f"{path}: {error}", hint=error.hint or _ADVICE) from error
        except _UNREADABLE as error:
            raise ModelError(f"{path}: cannot be read as ONNX ({str(error)[:200]})", hint=_ADVICE) from error
        for tensor in self._contents.tensors:
            self._check_place(tensor)

    @property
    def folder(self) -> Path:
        """Where the weights are, links followed: onnxruntime refuses those that lead elsewhere."""
        return self.path.resolve().parent

    @property
    def paths(self) -> list[Path]:
        """The file, and that of its weights where there is one."""
        return list(self._states)

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs of the graph."""
        return list(self._contents.inputs)

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs of the graph: hidden.0, hidden.1, ..., and logits, pooled, task.* where they are."""
        return list(self._contents.outputs)

    @property
    def tensors(self) -> list[Tensor]:
        """The weights, in order."""
        return self._contents.tensors

    def lacks(self, graph: Graph) -> set[str]:
        """Return the values that a graph reads and that neither itself nor the file has."""
        known = {*self.inputs, *graph.weights, ""}.union(*(node.outputs for node in self._contents.nodes))
        known.update(name for node in graph.nodes for name in node.outputs)
        return {name for node in graph.nodes for name in node.inputs} - known

    def add(self, graph: Graph) -> None:
        """Put a graph behind that of the file, in memory: it reads values of the file's, and `lacks` nothing."""
        self._contents.nodes += map(encode, graph.nodes)
        self._added |= {name: make_whole_tensor(name, np.asarray(a, order="C")) for name, a in graph.weights.items()}
        for name, value in graph.outputs.items():
            self._contents.outputs[name] = b"".join(make_value(name, value).parts)

    def verify(self) -> None:
        """Raise ModelError unless graph and weights are those that the header speaks of."""
        self.verify_graph()
        state = sha256()
        for tensor in self.tensors:
            feed_tensor(state, tensor.name, tensor.dtype, tensor.shape, *self.read_pieces(tensor))
        if state.hexdigest() != self.header.digest:
            raise self._damaged("weights")

    def verify_graph(self) -> None:
        """Do that without the weights that are large. Call it before `add`."""
        state, contents = sha256(), self._contents
        opsets = [value for number, value in contents.versions if number == 8 and not isinstance(value, int)]
        values = [*contents.inputs.values(), *contents.outputs.values()]
        feed_graph(state, opsets, values, (node.data for node in contents.nodes))
        for tensor in self.tensors:
            if tensor.size <= INLINE:
                feed_tensor(state, tensor.name, tensor.dtype, tensor.shape, *self.read_pieces(tensor))
        if state.hexdigest() != self.header.graph:
            raise self._damaged("nodes")

    def _damaged(self, what: str) -> ModelError:
        return ModelError(
            f"{self.path}: the {what} do not match their checksum",
            hint="The file is damaged: copy or export it again.",
        )

    def verify_unchanged(self) -> None:
        """Raise ModelError when a file was replaced or written to since it was opened: runtimes open it again."""
        for path, state in self._states.items():
            try:
                now = path.stat()
            except OSError:
                now = None
            if now is None or _identity(now) != _identity(state):
                raise ModelError(f"{path}: was changed while it was in use", hint="Start again.")

    def cut(
        self, wanted: Collection[str], *, unsigned: bool = False, padded: bool = False, in_pieces: bool = False
    ) -> bytes:
        """Return a model with no more than what some outputs need; its large weights are named by their place.

        The places are relative to `folder`. With `unsigned` weights of 8 bits lose their sign, and their zero
        is 128: the same product. Masks are left out unless there is padding; `in_pieces` cuts attention into PIECES.
        """
        nodes, values = needed(transform(self._contents.nodes, padded=padded, in_pieces=in_pieces), wanted)
        graph = Message(*((1, node.data) for node in nodes), (2, self.header.card.name))
        for tensor in self.tensors:
            if tensor.name in values:
                graph.add(5, self._refer(tensor, unsigned=unsigned))
        for name, message in self._added.items():
            if name in values:
                graph.add(5, message)
        for data in self._contents.inputs.values():
            graph.add(11, data)
        for name in wanted:
            graph.add(12, self._contents.outputs[name])
        return b"".join(Message(*self._contents.versions, (7, graph)).parts)

    def read_pieces(self, tensor: Tensor) -> Iterator[bytes]:
        """Read the bytes of a weight without mapping them: mapped ones would count as memory of this process."""
        with self._beside(tensor.file).open("rb") as file:
            file.seek(tensor.offset)
            for start in range(0, tensor.size, _PIECE):
                yield file.read(min(_PIECE, tensor.size - start))

    def _map(self, path: Path) -> memoryview:
        try:
            if not path.is_file():  # a pipe would never end, a folder has no bytes
                raise ModelError(f"{path}: is not a file", hint="Give the path of a file that protembed export wrote.")
            with path.open("rb") as file:
                self._states[path] = os.fstat(file.fileno())
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is empty"
            raise ModelError(f"{path}: cannot be read ({reason})", hint="Copy or export it again.") from error

    def _check_graph(self) -> None:
        """Raise ValueError unless the graph has the outputs and the vocabulary that the header promises."""
        encoder, outputs = self.header.card.encoder, self._contents.outputs
        count = encoder.n_layers + 1
        promised = [f"hidden.{layer}" for layer in range(min(count, len(outputs) + 1))]
        promised += [output_name(head.task) for head in self.header.heads]
        if absent := [name for name in promised if name not in outputs]:
            raise ValueError(f"its graph has no output {absent[0][:50]}")
        rows = {tensor.name: tensor.shape for tensor in self.tensors}.get("encoder.embedding.weight")
        if rows != (encoder.vocab_size, encoder.d_model) or encoder.vocab_size < len(self.header.card.alphabet):
            raise ValueError(f"an embedding of {rows}, not ({encoder.vocab_size}, {encoder.d_model})")

    def _check_place(self, tensor: Tensor) -> None:
        beside = self._beside(tensor.file)
        if tensor.file not in self._files:
            if len(self._files) > 1:
                raise ModelError(f"{self.path}: its weights are said to lie in two other files")
            if not beside.exists():
                raise ModelError(
                    f"{beside}: not there; it holds the weights of {self.path.name}",
                    hint="A model of more than 2 GB has two files: copy both.",
                )
            self._files[tensor.file] = self._map(beside)
        if tensor.offset + tensor.size > len(self._files[tensor.file]):
            raise ModelError(f"{beside}: is cut short", hint="Copy it again.")

    def _beside(self, name: str) -> Path:
        """Return the file of that name beside this one, or beside the one that this is a link to."""
        if not name:
            return self.path
        beside = self.path.with_name(name)
        return beside if beside.exists() else self.folder / name if (self.folder / name).exists() else beside

    def _bytes(self, tensor: Tensor) -> memoryview:
        return self._files[tensor.file][tensor.offset : tensor.offset + tensor.size]

    def _refer(self, tensor: Tensor, *, unsigned: bool) -> Message:
        """Describe a weight by its place; with its bytes when it is small or has to lose its sign."""
        flip = unsigned and tensor.dtype == "int8"
        message = make_tensor(tensor.name, DTYPES["uint8" if flip else tensor.dtype], tensor.shape)
        if flip:
            message.add(9, (np.frombuffer(self._bytes(tensor), dtype=np.uint8) ^ 128).tobytes())
        elif tensor.size <= INLINE:
            message.add(9, self._bytes(tensor))
        else:
            add_place(message, self._beside(tensor.file).resolve().name, tensor.offset, tensor.size)
        return message


def _identity(state: os.stat_result) -> tuple[int, ...]:
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns
