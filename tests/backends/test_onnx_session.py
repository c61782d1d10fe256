"""onnxruntime at work: signals inside one huge protein, memory that is short, telemetry, what a GPU computes in."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from protembed import interrupts
from protembed.backends.interruptible import Worker
from protembed.backends.onnx import session as sessions
from protembed.backends.onnx.backend import OnnxBackend
from protembed.backends.onnx.file import OnnxFile
from protembed.backends.onnx.forms import PIECES
from protembed.errors import OutOfMemoryError
from protembed.sequences.alphabet import PROTEMBED
from protembed.sequences.batching import TokenBatch
from tests.backends.test_export import make_model, write
from tests.conftest import ROOT

STATE = onnxruntime.capi.onnxruntime_pybind11_state


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(make_model("untied"), tmp_path / "model.onnx")


@pytest.fixture
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    interrupts.install()
    yield
    interrupts.clear()
    for number, handler in before.items():
        signal.signal(number, handler)


def batch_of(length: int) -> TokenBatch:
    return TokenBatch.of([PROTEMBED.encode(("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEV" * (1 + length // 32))[:length])])


def form_of(backend: OnnxBackend) -> Any:
    assert backend._session._opened is not None
    return backend._session._opened[0]


def test_attention_in_pieces_is_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [("residues", layer) for layer in range(4)] + [("logits", 3), ("pooled", 3)]
    whole = OnnxBackend(path, device="cpu", threads=1).run(batch_of(1100), wanted)
    monkeypatch.setattr(sessions, "LARGEST_CALL", 2**20)
    backend = OnnxBackend(path, device="cpu", threads=1)
    pieces = backend.run(batch_of(1100), wanted)
    for output in wanted:
        np.testing.assert_allclose(pieces[output], whole[output], atol=1e-5)
    assert form_of(backend).in_pieces
    cut = onnx.load_from_string(OnnxFile(path).cut(["hidden.1"], in_pieces=True)).graph.node
    assert [node.op_type for node in cut].count("MultiHeadAttention") == PIECES


def test_short_proteins_are_computed_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = OnnxBackend(path, device="cpu", threads=1)
    in_main_thread = []
    compute = backend._session._compute

    def watched(*words: Any) -> Any:
        in_main_thread.append(threading.current_thread() is threading.main_thread())
        return compute(*words)

    monkeypatch.setattr(backend._session, "_compute", watched)
    backend.run(batch_of(500), [("mean", 3)])
    assert in_main_thread == [True]
    assert not form_of(backend).in_pieces
    monkeypatch.setattr(sessions, "LONG", 1)
    backend.run(batch_of(500), [("mean", 3)])
    assert in_main_thread == [True, False]


def test_masks_are_left_out_where_nothing_is_padded(path: Path) -> None:
    file = OnnxFile(path)
    unmasked, masked = (onnx.load_from_string(file.cut(["hidden.3"], padded=padded)).graph for padded in (False, True))
    assert {len(node.input) for node in unmasked.node if node.op_type == "MultiHeadAttention"} == {3}
    assert {len(node.input) for node in masked.node if node.op_type == "MultiHeadAttention"} == {5}
    assert {node.op_type for node in masked.node} - {node.op_type for node in unmasked.node} >= {"Not", "ReduceMax"}


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_terminates_a_run(
    path: Path, number: signal.Signals, deferred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime is asked to end, and nothing is left running when the exception comes."""
    monkeypatch.setattr(sessions, "LONG", 1)
    backend = OnnxBackend(path, device="cpu", threads=1)
    ended = []

    class Slow:
        def run(self, names: Any, feeds: Any, options: Any) -> Any:
            signal.pthread_kill(threading.main_thread().ident or 0, number)
            while not options.terminate:
                time.sleep(0.01)
            ended.append(True)
            raise STATE.Fail("Exiting due to terminate flag being set to true.")

    monkeypatch.setattr(backend._session, "_open", lambda _: Slow())

    def run() -> None:
        if not deferred:
            backend.run(batch_of(10), [("mean", 3)])
            return
        with interrupts.deferred():
            backend.run(batch_of(10), [("mean", 3)])

    with pytest.raises(interrupts.Interrupted) as caught:
        run()
    assert caught.value.number == number
    assert ended == [True]


def test_a_worker_without_a_thread_computes_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    worker, computed = Worker(), list[int]()

    def fail(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        worker.run(lambda: computed.append(1), stop=lambda: None)
    worker.run(lambda: computed.append(2), stop=lambda: None)
    assert computed == [1, 2]


def test_an_exception_of_the_computation_comes_through() -> None:
    def fail() -> None:
        raise ValueError("from the other thread")

    with pytest.raises(ValueError, match="from the other thread"):
        Worker().run(fail, stop=lambda: None)


@pytest.mark.parametrize(
    "error",
    [
        STATE.RuntimeException("Non-zero status code. Failed to allocate memory for requested buffer of size 4"),
        STATE.Fail("std::bad_alloc"),
        RuntimeError("pthread_create failed, error code: 12 error msg: Cannot allocate memory"),
        MemoryError(),
    ],
)
def test_what_a_batch_that_does_not_fit_took_is_given_back(
    path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = OnnxBackend(path, device="cpu")
    backend.run(batch_of(10), [("mean", 3)])

    def fail(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(backend._session, "_compute", fail)
        with pytest.raises(OutOfMemoryError) as caught:
            backend.run(batch_of(10), [("mean", 3)])
    assert caught.value.__context__ is None
    assert backend._session._opened is None, "the runtime keeps memory that it took; a new session has none"
    assert backend.run(batch_of(10), [("mean", 3)])["mean", 3].shape == (1, 32)


def test_results_do_not_depend_on_which_gpu_it_is(path: Path) -> None:
    backend = OnnxBackend(path, device="cpu")
    assert backend.description == backend.computed_with == "onnx, cpu, float32"
    backend._session.device = "cuda:1"
    assert (backend.description, backend.computed_with) == ("onnx, cuda:1, float32", "onnx, cuda, float32")


def test_a_gpu_computes_float32_in_float32(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def make(model: bytes, options: Any, providers: list[Any]) -> Any:
        made.append(providers)
        return SimpleNamespace(get_providers=lambda: ["CUDAExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", make)
    OnnxBackend(path, device="cuda:0")
    assert made == [[("CUDAExecutionProvider", {"device_id": "0", "use_tf32": "0"}), "CPUExecutionProvider"]]


def run_alone(code: str, *words: object, **environment: str) -> str:
    """Run code in a process of its own and return what it prints."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    command = (sys.executable, "-c", code, *map(str, words))
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_onnxruntime_keeps_no_record_of_its_use(path: Path, tmp_path: Path) -> None:
    code = """
import sys, protembed
protembed.load(sys.argv[1], device="cpu").embed_residues(["MKT"])
import os; print(os.environ["ORT_DISABLE_TELEMETRY"])
"""
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: str(home) for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    assert run_alone(code, path, **environment) == "1\n"
    assert list(home.rglob("*")) == []


LIMITED = """
import resource, sys
import protembed
from protembed.inference.embed import EmbedOptions, embed
from protembed.sequences.records import Record
from protembed.sequences.windows import Failure
backend = protembed.load(sys.argv[1], device="cpu", threads=int(sys.argv[3]), backend=sys.argv[4])._backend
records = [Record(str(number), "MKTAYIAKQR" * 60) for number in range(4)]
options = EmbedOptions(max_tokens=100_000)
list(embed([Record("0", "MKT")], backend, options))
size = 4096 * int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[2]) * 2**20,) * 2)
found = list(embed(records, backend, options))
assert [item.record.id for item in found] == [record.id for record in records]
print(sum(isinstance(item, Failure) for item in found))
"""


@pytest.mark.parametrize(("backend", "threads"), [("torch", 1), ("onnx", 1), ("onnx", 2)])
def test_memory_that_shrinks_during_a_run_does_not_end_it(backend: str, threads: int) -> None:
    """Under `ulimit -v` in a real process: batches are halved, or records fail; the process never dies."""
    failed = run_alone(LIMITED, "protembed-6m", 12, threads, backend, OPENBLAS_NUM_THREADS="1")
    assert 0 <= int(failed) <= 4


HUGE = """
import sys
from protembed import interrupts
import protembed
interrupts.install()
model = protembed.load(device="cpu", threads=1, backend=sys.argv[1])
model.embed_residues(["MKT"])
print("ready", flush=True)
try:
    model.embed_residues(["MKTAYIAKQR" * (int(sys.argv[2]) // 10)])
    print("done")
except KeyboardInterrupt as error:
    interrupts.clear()
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_a_protein_of_30_000_residues_can_be_interrupted(backend: str, number: signal.Signals) -> None:
    """The whole protein takes minutes; a signal in the midst of it is answered within seconds."""
    words = [sys.executable, "-c", HUGE, backend, "30000"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(12)
        began = time.monotonic()
        process.send_signal(number)
        assert process.stdout.read() == f"{number.name}\n"
        process.wait()
        seconds = time.monotonic() - began
    print(backend, number.name, f"{seconds:.1f} s")
    assert process.returncode == 0
    assert seconds < 30, "about two seconds on a machine with nothing else to do"
