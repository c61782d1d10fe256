"""ONNX files that lie or are damaged: one clear error each, nothing of the user's read, memory bounded."""

import json
import os
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from protembed.backends.load import ModelOptions, find_source, open_backend
from protembed.backends.onnx import contents as reading
from protembed.backends.onnx.backend import OnnxBackend
from protembed.backends.onnx.export import ExportOptions, export_model
from protembed.backends.onnx.file import OnnxFile
from protembed.backends.onnx.header import KEY, KEY_CHECKSUM, checksum
from protembed.backends.onnx.protobuf import Message, read_fields
from protembed.backends.onnx.writer import write_onnx
from protembed.errors import ModelError, ProtembedError, UsageError
from protembed.sequences.alphabet import PROTEMBED
from protembed.sequences.batching import TokenBatch
from tests.backends.test_export import draw, make_model

Change = Callable[[Any], None]


@pytest.fixture(scope="module")
def whole(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "tiny.onnx"
    export_model(ModelOptions(model=str(model_file), device="cpu"), ExportOptions(out=path))
    return path


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in two files."""
    path, model = tmp_path_factory.mktemp("two") / "two.onnx", make_model()
    write_onnx(path, draw(model), model.card, attention="fused", weights="float32", largest=1000)
    return path


def vector_of(path: Path) -> Any:
    backend = OnnxBackend(path, device="cpu", threads=1)
    return backend.run(TokenBatch.of([PROTEMBED.encode("MKTAYIAKQR")]), [("mean", 2)])["mean", 2]


def changed(whole: Path, out: Path, change: Change) -> Path:
    model = onnx.load(whole, load_external_data=False)
    change(model)
    out.write_bytes(model.SerializeToString())
    return out


def with_header(text: str) -> Change:
    """Put a text in the place of the header, with the checksum that goes with it."""

    def change(model: Any) -> None:
        entries = {entry.key: entry for entry in model.metadata_props}
        entries[KEY].value, entries[KEY_CHECKSUM].value = text, checksum(text)

    return change


def with_field(*path: str, value: Any) -> Change:
    """Set one field of the header, found by the keys on the way to it."""

    def change(model: Any) -> None:
        header = json.loads({entry.key: entry.value for entry in model.metadata_props}[KEY])
        place = header
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with_header(json.dumps(header))(model)

    return change


NONSENSE: dict[str, Change] = {
    "no object": with_header("[]"),
    "null": with_header("null"),
    "no JSON": with_header("{"),
    "empty": with_header(""),
    "deep": with_header("[" * 100_000),
    "deep object": with_header('{"format": ' * 100_000),
    "a number of 5,000 digits": with_header('{"format": ' + "1" * 5000 + "}"),
    "a float": with_field("format", value=2.5),
    "text as format": with_field("format", value="2"),
    "attention": with_field("attention", value="quantum"),
    "attention of another type": with_field("attention", value=["fused"]),
    "weights": with_field("weights", value=None),
    "digest": with_field("digest", value="0" * 63),
    "digest of another type": with_field("digest", value=7),
    "graph": with_field("graph", value="g" * 64),
    "source": with_field("source", value={}),
    "tool_version": with_field("tool_version", value=1),
    "unknown": with_field("surprise", value=1),
    "no card": with_field("card", value=[]),
    "a card of nothing": with_field("card", value={}),
    "heads of another type": with_field("heads", value={"ss3": {}}),
    "a head that is none": with_field("heads", value=[1]),
    "a head of nothing": with_field("heads", value=[{}]),
    "10**9 layers": with_field("card", "encoder", "n_layers", value=10**9),
    "more layers": with_field("card", "encoder", "n_layers", value=7),
    "layers as text": with_field("card", "encoder", "n_layers", value="2"),
    "negative layers": with_field("card", "encoder", "n_layers", value=-1),
    "no attention heads": with_field("card", "encoder", "n_heads", value=0),
    "a wide model": with_field("card", "encoder", "d_model", value=2**40),
    "another width": with_field("card", "encoder", "d_model", value=64),
    "another vocabulary": with_field("card", "encoder", "vocab_size", value=30),
    "a field of the future": with_field("card", "encoder", "gate", value=True),
    "unknown norm": with_field("card", "encoder", "norm", value="batch"),
    "no alphabet": with_field("card", "alphabet", value=3),
    "tokens of another type": with_field("card", "alphabet", "tokens", value=7),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_headers_of_nonsense(name: str, whole: Path, tmp_path: Path) -> None:
    path = changed(whole, tmp_path / "x.onnx", NONSENSE[name])
    with pytest.raises(ModelError, match=r"x\.onnx: ") as caught:
        vector_of(path)
    assert len(str(caught.value)) < 600
    assert caught.value.hint


def test_a_header_without_its_checksum_is_damaged(whole: Path, tmp_path: Path) -> None:
    data = whole.read_bytes()
    path = tmp_path / "x.onnx"
    path.write_bytes(data.replace(b'"temperature"', b'"temperaturE"').replace(b'"A", "C"', b'"C", "A"', 1))
    with pytest.raises(ModelError, match="the header does not match its checksum"):
        OnnxFile(path)


def loop(model: Any) -> None:
    """Put a loop without an end into the graph."""
    body = onnx.helper.make_graph([], "body", [], [])
    model.graph.node.insert(0, onnx.helper.make_node("Loop", ["", ""], ["forever"], body=body))


def other_domain(model: Any) -> None:
    model.graph.node[0].domain = "evil.example"


def function(model: Any) -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    opsets = [onnx.helper.make_opsetid("", 20)]
    model.functions.append(onnx.helper.make_function("mine", "Fast", ["x"], ["y"], [node], opsets))
    model.graph.node[0].domain, model.graph.node[0].op_type = "mine", "Fast"


def sparse(model: Any) -> None:
    values = onnx.helper.make_tensor("sparse", 1, [1], [1.0])
    indices = onnx.helper.make_tensor("indices", 7, [1], [0])
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [10**12]))


def twice(model: Any) -> None:
    model.metadata_props.append(onnx.StringStringEntryProto(key=KEY, value="{}"))


def no_output(model: Any) -> None:
    del model.graph.node[0].output[:]


def huge_shape(model: Any) -> None:
    model.graph.initializer[0].dims[:] = [2**62, 2**62]


def negative_shape(model: Any) -> None:
    model.graph.initializer[0].dims[0] = -29


def many_dimensions(model: Any) -> None:
    model.graph.initializer[0].dims.extend([1] * 100)


def unknown_type(model: Any) -> None:
    model.graph.initializer[0].data_type = 99


GRAPHS: dict[str, tuple[Change, str]] = {
    "a loop": (loop, "the operator 'Loop' is none that protembed writes"),
    "another domain": (other_domain, "the operator 'evil.example.* is none that protembed writes"),
    "a function": (function, "the operator 'mine.Fast' is none"),
    "sparse weights": (sparse, "sparse weights"),
    "two headers": (twice, "'protembed' twice"),
    "a node without an output": (no_output, "without an output"),
    "a shape beyond all memory": (huge_shape, "a shape of"),
    "a negative shape": (negative_shape, "a shape of"),
    "a hundred dimensions": (many_dimensions, "a shape of 9 dimensions"),
    "an unknown type": (unknown_type, "cannot be read as ONNX"),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_that_protembed_does_not_write(name: str, whole: Path, tmp_path: Path) -> None:
    change, message = GRAPHS[name]
    with pytest.raises(ModelError, match=message):
        OnnxFile(changed(whole, tmp_path / "x.onnx", change))


@pytest.mark.parametrize("what", ["two graphs", "field 0", "a number as graph", "a number as metadata"])
def test_messages_that_make_no_sense(what: str, whole: Path, tmp_path: Path) -> None:
    data = whole.read_bytes()
    graph = next(data[field.start : field.stop] for field in read_fields(memoryview(data)) if field.number == 7)
    more = {"two graphs": graph, "field 0": bytes(2)}
    more |= {"a number as graph": b"\x38\x01", "a number as metadata": b"\x70\x01"}
    (tmp_path / "x.onnx").write_bytes(data + more[what])
    with pytest.raises(ModelError, match=r"x\.onnx: cannot be read as ONNX"):
        OnnxFile(tmp_path / "x.onnx")


def point_to(file: str, offset: str = "0", length: str | None = None) -> Change:
    """Say that a weight lies in another file."""

    def change(model: Any) -> None:
        tensor = next(entry for entry in model.graph.initializer if entry.name == "encoder.embedding.weight")
        size = length or str(29 * 32 * 4)
        tensor.ClearField("raw_data")
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", file), ("offset", offset), ("length", size)):
            tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=value))

    return change


@pytest.mark.parametrize(
    "file",
    ["secret.txt", "../secret.txt", "/etc/passwd", "tiny.onnx", "", ".", "..", "a/../secret.onnx.data", "/x.onnx.data"],
)
def test_weights_in_any_file_of_the_user_s_are_refused(file: str, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_bytes(bytes(29 * 32 * 4))
    (tmp_path / "tiny.onnx").write_bytes(whole.read_bytes())
    path = changed(whole, tmp_path / "x.onnx", point_to(file))
    with pytest.raises(ModelError, match=r"its weights are said to lie in") as caught:
        OnnxFile(path)
    assert repr(file) in str(caught.value)


@pytest.mark.parametrize("offset", ["-8", "1_0", "\u0663", "9" * 30, "x"])
def test_places_that_are_no_numbers(offset: str, two: Path, tmp_path: Path) -> None:
    (tmp_path / "two.onnx.data").write_bytes(two.with_name("two.onnx.data").read_bytes())
    path = changed(two, tmp_path / "two.onnx", point_to("two.onnx.data", offset))
    with pytest.raises(ModelError, match="a size of"):
        OnnxFile(path)


def test_places_beyond_the_end(two: Path, tmp_path: Path) -> None:
    (tmp_path / "two.onnx.data").write_bytes(two.with_name("two.onnx.data").read_bytes())
    path = changed(two, tmp_path / "two.onnx", point_to("two.onnx.data", "999999999"))
    with pytest.raises(ModelError, match="is cut short"):
        OnnxFile(path)
    path = changed(two, tmp_path / "two.onnx", point_to("two.onnx.data", "0", "8"))
    with pytest.raises(ModelError, match="has 8 bytes"):
        OnnxFile(path)
    path = changed(two, tmp_path / "two.onnx", point_to("third.onnx.data"))
    (tmp_path / "third.onnx.data").write_bytes(bytes(10_000))
    with pytest.raises(ModelError, match="two other files"):
        OnnxFile(path)


def test_a_second_file_of_other_weights_is_noticed(two: Path, tmp_path: Path) -> None:
    path = changed(two, tmp_path / "two.onnx", lambda _: None)
    data = bytearray(two.with_name("two.onnx.data").read_bytes())
    data[-1] ^= 1
    (tmp_path / "two.onnx.data").write_bytes(data)
    with pytest.raises(ModelError, match="do not match their checksum"):
        vector_of(path)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "folder.onnx").mkdir()
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name in ("pipe.onnx", "pipe.safetensors"):
        with pytest.raises(ModelError, match="is neither a file nor a folder"):
            open_backend(ModelOptions(model=str(tmp_path / name)))
    with pytest.raises(ModelError, match="is not a file"):
        open_backend(ModelOptions(model=str(tmp_path / "folder.onnx")))
    with pytest.raises(ModelError, match="is not a file"):
        OnnxFile(tmp_path / "pipe.onnx")


@pytest.mark.parametrize("name", ["", " ", "\t"])
def test_no_name_is_no_model(name: str) -> None:
    with pytest.raises(UsageError, match="no model is named"):
        find_source(ModelOptions(model=name))


def test_a_folder_without_a_model_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for backend in ("auto", "torch"):
        with pytest.raises(ModelError, match="expected one file of weights and found none"):
            open_backend(ModelOptions(model=".", backend=backend))
    with pytest.raises(ModelError, match="there is no ONNX file of"):
        open_backend(ModelOptions(model=".", backend="onnx"))


def test_counts_are_bounded_before_memory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = b"".join(Message((1, "x"), (2, "y"), (4, "Relu")).parts)
    graph = Message(*((1, node) for _ in range(2000)))
    monkeypatch.setattr(reading, "_MOST", 1000)
    for data, message in (
        (b"".join(Message((7, graph)).parts), "too many nodes"),
        (b"".join(Message((14, Message((1, "a"), (2, "x" * (2**24 + 1))))).parts), "a text of more than 16 MB"),
        (b"".join(Message(*((14, Message((1, str(number)))) for number in range(2000))).parts), "too many entries"),
    ):
        (tmp_path / "x.onnx").write_bytes(data)
        with pytest.raises(ModelError, match=message):
            OnnxFile(tmp_path / "x.onnx")


def mutate(data: bytes, chance: random.Random, graph_ends: int) -> bytes:
    """Damage a file in one of the ways in which files are damaged; most often where it is not weights."""
    place = chance.randrange(graph_ends if chance.random() < 0.7 else len(data))
    length = chance.choice((1, 2, 8, 100, 5000))
    match chance.randrange(6):
        case 0:
            return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]
        case 1:
            return data[:place] + chance.randbytes(length) + data[place + length :]
        case 2:
            return data[:place] + data[place + length :]
        case 3:
            return data[:place] + chance.randbytes(length) + data[place:]
        case 4:
            return data[:place]
        case _:
            return data[:place] + data[: len(data) - place]


@pytest.mark.parametrize("seed", range(30))
def test_damaged_files_are_refused_or_right(seed: int, whole: Path, tmp_path: Path) -> None:
    data, path, chance = whole.read_bytes(), tmp_path / "x.onnx", random.Random(seed)
    right, refused = vector_of(whole), 0
    for _ in range(10):
        path.write_bytes(mutate(data, chance, data.find(b"encoder.embedding.weight")))
        try:
            own = vector_of(path)
        except ProtembedError:
            refused += 1
        else:
            np.testing.assert_array_equal(own, right, err_msg="a damage that is not noticed must not matter")
    assert refused > 5


def test_reading_a_file_takes_no_memory_for_its_weights(tmp_path: Path) -> None:
    path, model = tmp_path / "wide.onnx", make_model(d_model=128, d_ff=4096)
    write_onnx(path, draw(model), model.card, attention="fused", weights="float32")
    tracemalloc.start()
    OnnxFile(path).verify()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 12e6
    assert peak < 5e6
