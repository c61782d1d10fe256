"""ONNX files at work: the results of torch without torch, the choice of a runtime, files that are not right."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import protembed
from protembed.backends import load as loading
from protembed.backends.load import ModelOptions, open_backend
from protembed.backends.onnx import session
from protembed.backends.onnx.backend import OnnxBackend
from protembed.backends.onnx.cache import cache_folder, export_place, find_exported
from protembed.backends.onnx.export import ExportOptions, arrays_of, export_model
from protembed.backends.onnx.graph import build_graph
from protembed.backends.onnx.header import checksum
from protembed.backends.onnx.writer import write_onnx
from protembed.backends.torch_backend import TorchBackend
from protembed.checkpoints import native as checkpoint
from protembed.errors import DependencyError, ModelError, OutOfMemoryError, UsageError
from protembed.models.protein_model import ProteinModel
from protembed.sequences.batching import TokenBatch
from tests.conftest import GOLDEN, SEQUENCES, Run

LAST = 2


@pytest.fixture(scope="session")
def onnx_file(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    export_model(ModelOptions(model=str(model_file), device="cpu"), ExportOptions(out=path))
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("PROTEMBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "has_gpu", lambda: False)
    return tmp_path / "cache"


def batch_of(*sequences: str) -> TokenBatch:
    return TokenBatch.of([protembed.load().card.alphabet.encode(sequence) for sequence in sequences])


def name_of(**options: Any) -> str:
    """Return the name of the runtime that is chosen."""
    return open_backend(ModelOptions(**options)).description.partition(",")[0]


def test_python_interface_equals_torch(onnx_file: Path, model_file: Path, fasta: Path) -> None:
    own, right = protembed.load(onnx_file), protembed.load(model_file, backend="torch", device="cpu")
    assert repr(own) == "<protembed model tiny: onnx, cpu, float32>"
    for pool in ("mean", "max", "cls", "mean+max"):
        for (record, vector), (_, expected) in zip(
            own.embed(fasta, pool=pool), right.embed(fasta, pool=pool), strict=True
        ):
            np.testing.assert_allclose(vector, expected, atol=1e-5, err_msg=record.id)
    for layer in range(LAST + 1):
        pairs = zip(own.embed_residues(fasta, layer=layer), right.embed_residues(fasta, layer=layer), strict=True)
        for rows, expected in pairs:
            np.testing.assert_allclose(rows, expected, atol=1e-5)
    masked = [model.logits(["MKTAYIAKQR", "MK"], mask=[[3, 7], []]) for model in (own, right)]
    for scores, expected in zip(*masked, strict=True):
        np.testing.assert_allclose(scores, expected, atol=1e-5)
    states = [model.hidden_states(["MKTAYIAKQR"])[0] for model in (own, right)]
    np.testing.assert_allclose(*states, atol=1e-5)


def test_a_protein_does_not_see_its_batch(onnx_file: Path) -> None:
    model, sequences = protembed.load(onnx_file), [*SEQUENCES.values(), "M", "MKTAYIAKQR", "RQKAIYATKM"]
    together = [vector for _, vector in model.embed(sequences, max_tokens=100_000)]
    alone = [next(model.embed([sequence]))[1] for sequence in sequences]
    again = [vector for _, vector in model.embed(reversed(sequences))][::-1]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(together, again, atol=1e-5)


def test_runs_are_repeated_to_the_bit(onnx_file: Path) -> None:
    batch = batch_of(*SEQUENCES.values())
    for threads in (1, 2):
        first, second = (
            OnnxBackend(onnx_file, threads=threads).run(batch, [("residues", LAST)])["residues", LAST] for _ in range(2)
        )
        np.testing.assert_array_equal(first, second)


def test_proteins_of_one_length_share_calls(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, calls = OnnxBackend(onnx_file, device="cpu"), []
    run = backend._session.run

    def counted(names: Any, feeds: Any) -> Any:
        calls.append(feeds["tokens"].shape)
        return run(names, feeds)

    monkeypatch.setattr(backend._session, "run", counted)
    monkeypatch.setattr("protembed.backends.onnx.backend.CPU_TOKENS", 36)
    backend.run(batch_of("MKTAYIAKQR", "MK", *["RQKAIYATKM"] * 3), [("mean", LAST)])
    assert calls == [(3, 12), (1, 12), (1, 4)]


def test_estimates(onnx_file: Path) -> None:
    backend = OnnxBackend(onnx_file)
    assert backend.budget() >= 1024
    assert 1e6 < backend.operations_per_second() < 1e15


WHOLE_RUN = """
import sys
from protembed.cli import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end
heavy = {"torch", "onnx", "safetensors.torch", "transformers"} & set(sys.modules)
assert not heavy, heavy
assert "onnxruntime" in sys.modules
"""


def run_alone(*words: object, **environment: str) -> None:
    """Run the command line and assert that it imports onnxruntime and not torch."""
    subprocess.run([sys.executable, "-c", WHOLE_RUN, *map(str, words)], check=True, env={**os.environ, **environment})


def test_embed_does_not_import_torch(onnx_file: Path, fasta: Path, tmp_path: Path) -> None:
    out, residues = tmp_path / "out.h5", tmp_path / "residues.h5"
    words = ("embed", fasta, "-o", out, "--residues", residues, "--device", "cpu", "--threads", 1)
    run_alone(*words, "-m", onnx_file, "--max-length", 100, "--pool", "mean+max", "--backend", "onnx")
    with protembed.open(out) as store, protembed.open(residues) as rows:
        assert list(store) == list(rows) == list(SEQUENCES)
        assert store["sp|P01308|INS_HUMAN"].shape == (64,)
    run_alone("embed", fasta, "-m", onnx_file, "--dry-run", "-o", tmp_path / "dry.h5", "--device", "cpu")


def test_a_cached_export_replaces_torch(model_file: Path, fasta: Path, tmp_path: Path, cache: Path) -> None:
    assert name_of(model=str(model_file)) == "torch"
    with pytest.raises(ModelError, match="there is no ONNX file of") as caught:
        name_of(model=str(model_file), backend="onnx")
    assert f"protembed export {model_file}" in caught.value.hint
    done = export_model(ModelOptions(model=str(model_file), device="cpu"), ExportOptions())
    assert done.files == [cache / "onnx" / f"{done.card.sha256}.onnx"]
    assert name_of(model=str(model_file)) == name_of(model=str(model_file), backend="onnx") == "onnx"
    assert name_of(model=str(model_file), backend="torch") == "torch"
    assert name_of(model=str(model_file), dtype="bfloat16") == "torch"
    run_alone("embed", fasta, "-m", model_file, "-o", tmp_path / "out.h5", "--device", "cpu")


def test_a_gpu_is_left_to_torch(
    model_file: Path, onnx_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _ = export_place(model_file)
    place.parent.mkdir(parents=True)
    place.write_bytes(onnx_file.read_bytes())
    monkeypatch.setattr(loading, "has_gpu", lambda: True)
    assert name_of(model=str(model_file)) == "torch"
    assert name_of(model=str(model_file), device="cpu") == "onnx"


def test_an_onnx_file_beside_the_checkpoint(
    model: ProteinModel, model_file: Path, onnx_file: Path, tmp_path: Path, cache: Path
) -> None:
    native = tmp_path / "tiny.safetensors"
    native.write_bytes(model_file.read_bytes())
    native.with_suffix(".onnx").write_bytes(onnx_file.read_bytes())
    found = find_exported(native)
    assert found is not None
    assert found.path == tmp_path / "tiny.onnx"
    assert name_of(model=str(native)) == "onnx"
    other = ProteinModel(model.card)
    other.initialise(5)
    checkpoint.save(other, native)
    assert find_exported(native) is None
    assert name_of(model=str(native)) == "torch"
    native.with_suffix(".onnx").write_text("damaged")
    assert find_exported(native) is None


def test_foreign_checkpoints_are_found_again(tmp_path: Path, cache: Path) -> None:
    source = GOLDEN / "esm2_hf"
    folder = tmp_path / "esm"
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    export_model(ModelOptions(model=str(folder), device="cpu"), ExportOptions())
    assert name_of(model=str(folder)) == "onnx"
    os.utime(folder / "model.safetensors", (1, 1))
    assert name_of(model=str(folder)) == "onnx", "the content is what counts"
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert name_of(model=str(folder)) == "torch"


def test_the_cache_goes_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROTEMBED_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "protembed"
    monkeypatch.setenv("XDG_CACHE_HOME", "/there")
    assert cache_folder() == Path("/there/protembed")
    monkeypatch.setenv("PROTEMBED_CACHE", "/here")
    assert cache_folder() == Path("/here")


def test_what_only_torch_computes(
    model: ProteinModel, model_file: Path, onnx_file: Path, tmp_path: Path, cache: Path
) -> None:
    with pytest.raises(ModelError, match="computes no contacts or attention maps"):
        protembed.load(onnx_file).attentions(["MKTAYIAKQR"])
    with pytest.raises(ModelError, match="no contact regression"):
        protembed.load(onnx_file).contacts(["MKTAYIAKQR"])
    export_model(ModelOptions(model=str(model_file), device="cpu"), ExportOptions())
    loaded = protembed.load(model_file)
    assert "onnx" in repr(loaded)
    tokens = model.card.alphabet.encode("MKTAYIAKQR")
    maps = TorchBackend(model).attentions(tokens)[:, :, 1:-1, 1:-1]
    np.testing.assert_array_equal(loaded.attentions(["MKTAYIAKQR"])[0], maps)


def test_without_onnxruntime(onnx_file: Path, model_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_model(ModelOptions(model=str(model_file), device="cpu"), ExportOptions())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DependencyError, match="needs the package onnxruntime") as caught:
        protembed.load(onnx_file)
    assert "pip install onnxruntime" in caught.value.hint
    assert name_of(model=str(model_file)) == "torch"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "unknown device"),
        ({"device": "cpu:1"}, "unknown device"),
        ({"dtype": "bfloat16"}, "computes in float32, not in bfloat16"),
        ({"n_heads": 4}, "says everything itself"),
        ({"threads": 0}, "threads is 0"),
        ({"backend": "torch"}, "cannot be loaded into torch"),
        ({"backend": "jax"}, "unknown backend"),
    ],
)
def test_options_that_do_not_fit(onnx_file: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, ModelError), match=message):
        protembed.load(onnx_file, **options)


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="CUDA is there")
def test_cuda_is_not_there(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="built without CUDA") as caught:
        OnnxBackend(onnx_file, device="cuda:0")
    assert "onnx-gpu" in caught.value.hint
    there = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    with pytest.warns(UserWarning, match="going on on the CPU"):
        backend = OnnxBackend(onnx_file, device="auto")
    assert backend.description == "onnx, cpu, float32"
    with pytest.raises(UsageError, match="cuda:1"):
        OnnxBackend(onnx_file, device="cuda:1")


class FakeBinding:
    """Stands in for onnxruntime's IoBinding."""

    def __init__(self) -> None:
        self.inputs: dict[str, Any] = {}
        self.outputs: list[tuple[str, str, int]] = []

    def bind_cpu_input(self, name: str, array: Any) -> None:
        self.inputs[name] = array

    def bind_output(self, name: str, device: str, number: int) -> None:
        self.outputs.append((name, device, number))

    def copy_outputs_to_cpu(self) -> list[Any]:
        return [np.zeros((*self.inputs["tokens"].shape, 32), dtype=np.float32) for _ in self.outputs]


def test_a_gpu_gets_bound_inputs_and_outputs(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    bound: list[FakeBinding] = []

    def bind() -> FakeBinding:
        bound.append(FakeBinding())
        return bound[-1]

    def make(model: bytes, options: Any, providers: list[Any]) -> Any:
        made.append(providers)
        return SimpleNamespace(
            get_providers=lambda: ["CUDAExecutionProvider"],
            io_binding=bind,
            run_with_iobinding=lambda _: None,
        )

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", make)
    backend = OnnxBackend(onnx_file, device="cuda:1")
    assert backend.description == "onnx, cuda:1, float32"
    assert backend.run(batch_of("MK", "MKT"), [("mean", LAST)])["mean", LAST].shape == (2, 32)
    assert [binding.outputs for binding in bound] == [[("hidden.2", "cuda", 1)]] * 2
    assert made[-1][0] == ("CUDAExecutionProvider", {"device_id": "1", "use_tf32": "0"})


def test_memory_that_is_short(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = onnxruntime.capi.onnxruntime_pybind11_state
    backend = OnnxBackend(onnx_file, device="cpu")

    def fail(*_: Any) -> None:
        raise state.RuntimeException("Non-zero status code. BFCArena: Failed to allocate memory for requested buffer")

    session = SimpleNamespace(run=fail)
    monkeypatch.setattr(backend._session, "_open", lambda _: session)
    with pytest.raises(OutOfMemoryError, match="Failed to allocate"):
        backend.run(batch_of("MK"), [("mean", LAST)])


def test_products_of_eight_bits_that_saturate() -> None:
    class Saturating:
        def run(self, names: list[str], feeds: dict[str, Any]) -> list[Any]:
            return [np.full((8, 64), 64 * 32767 // 2, dtype=np.int32)]

    assert session.saturates(SimpleNamespace(InferenceSession=lambda *_, **__: Saturating()))
    cpu = Path("/proc/cpuinfo")
    if cpu.exists() and "vnni" in cpu.read_text():
        assert not session.saturates(onnxruntime)


def damage(onnx_file: Path, tmp_path: Path, **header: Any) -> Path:
    """Write the file anew with changes in its header."""
    model = onnx.load(onnx_file)
    entry, check = model.metadata_props
    entry.value = json.dumps({**json.loads(entry.value), **header})
    check.value = checksum(entry.value)
    path = tmp_path / "other.onnx"
    onnx.save(model, path)
    return path


def test_files_of_other_versions(onnx_file: Path, tmp_path: Path) -> None:
    for number, hint in ((3, "pip install --upgrade protembed"), (0, "Export it again")):
        path = damage(onnx_file, tmp_path, format=number, tool_version="9.9")
        with pytest.raises(ModelError, match=r"another version of protembed \(9\.9\)") as caught:
            protembed.load(path)
        assert hint in caught.value.hint
    with pytest.raises(ModelError, match="fields that this version does not know"):
        protembed.load(damage(onnx_file, tmp_path, card={"new": 1}))
    with pytest.raises(ModelError, match="cannot be read as ONNX"):
        protembed.load(damage(onnx_file, tmp_path, new=1))


def test_a_file_that_another_tool_rewrote_still_runs(onnx_file: Path, tmp_path: Path) -> None:
    path = damage(onnx_file, tmp_path)  # onnx puts fields into an order of its own
    assert protembed.load(path).embed_residues(["MKTAYIAKQR"])[0].shape == (10, 32)


def test_files_behind_links(onnx_file: Path, model: ProteinModel, tmp_path: Path) -> None:
    (tmp_path / "linked.onnx").symlink_to(onnx_file)
    assert protembed.load(tmp_path / "linked.onnx").embed_residues(["MKTAYIAKQR"])[0].shape == (10, 32)
    blobs = tmp_path / "blobs"  # as the cache of the Hugging Face hub has them
    blobs.mkdir()
    graph = build_graph(model.card, arrays_of(model), attention="fused", weights="float32")
    for file in write_onnx(
        tmp_path / "two.onnx", graph, model.card, attention="fused", weights="float32", largest=1000
    ):
        file.rename(blobs / f"blob{file.suffix}")
        file.symlink_to(blobs / f"blob{file.suffix}")
    assert protembed.load(tmp_path / "two.onnx").embed_residues(["MKTAYIAKQR"])[0].shape == (10, 32)


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    values = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    onnx.save(onnx.helper.make_model(graph), path)
    with pytest.raises(ModelError, match="was not written by protembed") as caught:
        protembed.load(path)
    assert "protembed export" in caught.value.hint
    for content in (b"", b"\0" * 100, b"not a model at all, but text", os.urandom(1000)):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"cannot be read|was not written by protembed"):
            protembed.load(path)


def test_truncated_files(onnx_file: Path, tmp_path: Path) -> None:
    path, whole = tmp_path / "cut.onnx", onnx_file.read_bytes()
    for kept in (1, 10, 100, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(ModelError, match=r"cut\.onnx") as caught:
            protembed.load(path)
        assert "again" in caught.value.hint or "protembed export" in caught.value.hint


def test_damaged_weights(onnx_file: Path, tmp_path: Path) -> None:
    path, data = tmp_path / "flipped.onnx", bytearray(onnx_file.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match="do not match their checksum"):
        protembed.load(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"\x0a\x08hidden.1", b"\x0a\x08hidden.7", "its graph has no output hidden.1"),  # of the list of outputs
        (b"\x0a\x06tokens\x12", b"\x1a\x06tokens\x12", "cannot be read as ONNX"),  # an input without a name
        (b"\x0a\x06tokens", b"\x0a\x06tokenz", "the nodes do not match their checksum"),
        (b"transB", b"tr\xffnsB", "the nodes do not match their checksum"),
    ],
)
def test_damaged_graphs(onnx_file: Path, tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    whole = onnx_file.read_bytes()
    place = whole.find(old) if old.endswith(b"tokens") or old == b"transB" else whole.rfind(old)
    (tmp_path / "bent.onnx").write_bytes(whole[:place] + new + whole[place + len(old) :])
    with pytest.raises(ModelError, match=rf"bent\.onnx: .*{message}"):
        protembed.load(tmp_path / "bent.onnx").embed_residues(["MKTAYIAKQR"])


def test_command_line_mistakes_are_two_lines(run: Run, fasta: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_text("not a model")
    done = run("embed", fasta, "-m", "bad.onnx", "-o", "out.h5")
    assert done.returncode == 2
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]


def test_loading_warns_of_nothing(onnx_file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(protembed.load(onnx_file, device="cpu").embed(["MK"]))
