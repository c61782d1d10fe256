"""Opening an exported model in onnxruntime, no more of it than is asked for, and running it."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from protembed.backends.interruptible import Worker
from protembed.backends.onnx.builder import Drawing, Value
from protembed.backends.onnx.file import OnnxFile
from protembed.backends.onnx.writer import serialise
from protembed.errors import DependencyError, ModelError, OutOfMemoryError, UsageError

Array = npt.NDArray[Any]

_CUDA = "CUDAExecutionProvider"
_SHORT_OF_MEMORY = (
    *("bad_alloc", "failed to allocate memory", "out of memory", "smaller than requested"),
    "cannot allocate memory",  # for the stack of a thread
)


def import_runtime() -> Any:
    """Import onnxruntime, its telemetry switched off: protembed sends nothing. Raises DependencyError."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise DependencyError(
            f"an ONNX file needs the package onnxruntime ({error})",
            hint="pip install onnxruntime, or pip install onnxruntime-gpu for CUDA",
        ) from error
    if hasattr(onnxruntime, "disable_telemetry_events"):
        onnxruntime.disable_telemetry_events()
    return onnxruntime


def available_threads() -> int:
    """Return how many threads a CPU run gets that is not told: OMP_NUM_THREADS, else the CPUs of this process."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdigit() and int(told) > 0:
        return int(told)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


LONG = 2**33
"""Products of numbers in a computation that is worth a second thread: about a second of one core."""

LARGEST_CALL = 2**34
"""Products in one call of attention on one core; what takes more is cut into pieces."""


@dataclass(frozen=True, kw_only=True)
class _Form:
    """What a session is made for: some outputs, of padded rows or not, attention in one call or in pieces."""

    wanted: frozenset[str]
    padded: bool = False
    in_pieces: bool = False


class Session:
    """Runs one file on one device.

    `device` is `cpu` or `cuda:N`, chosen at the start; where CUDA is broken, `auto` warns and goes on on the CPU. On a
    GPU float32 is float32: onnxruntime's default there, TF32, has 10 bits.
    Raises UsageError for a device that is not there.
    """

    def __init__(self, file: OnnxFile, *, device: str, threads: int | None) -> None:
        self._runtime, self._file = import_runtime(), file
        self._threads = threads or available_threads()
        self._opened: tuple[_Form, Any] | None = None
        self._unsigned, self._worker = False, Worker()
        self.device = self._choose_device(device)
        if file.header.weights == "int8" and self.device == "cpu":
            self._unsigned = saturates(self._runtime)

    def run(self, wanted: Sequence[str], feeds: Mapping[str, Array], *, padded: bool = False) -> list[Array]:
        """Compute outputs by name; `padded`: some rows of tokens are. Raises OutOfMemoryError, ModelError.

        A signal ends a long computation.
        """
        config = self._file.header.card.encoder
        rows, length = np.atleast_2d(feeds["tokens"]).shape
        attention = rows * length**2 * config.d_model
        matrices = 2 * config.d_model * (2 * config.d_model + config.d_ff)
        products = config.n_layers * (attention + rows * length * matrices)
        in_pieces = self.device == "cpu" and attention > LARGEST_CALL * self._threads
        form = _Form(wanted=frozenset(wanted), padded=padded, in_pieces=in_pieces)
        try:
            session = self._open(form)
            if products < LONG:
                return self._compute(session, wanted, feeds)
            options = self._runtime.RunOptions()
            return self._worker.run(
                lambda: self._compute(session, wanted, feeds, options),
                stop=lambda: setattr(options, "terminate", True),
            )
        except _errors() as error:
            reason, short = _first_line(error), _is_short_of_memory(error)
        if short:
            self._opened = None  # onnxruntime keeps what it took for the batch that failed, in pieces of other sizes
            raise OutOfMemoryError(reason)
        raise ModelError(
            f"{self._file.path}: onnxruntime cannot run it ({reason})",
            hint="Is it damaged, was it exported by a newer protembed, or is onnxruntime old? Export it again, or "
            "pip install --upgrade onnxruntime",
        )

    def _compute(self, session: Any, wanted: Sequence[str], feeds: Mapping[str, Array], *options: Any) -> list[Array]:
        """Run a session; on a GPU outputs stay there until they are copied together."""
        if self.device == "cpu":
            computed: list[Array] = session.run(list(wanted), dict(feeds), *options)
            return computed
        binding = session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name in wanted:
            binding.bind_output(name, "cuda", self._device_number)
        session.run_with_iobinding(binding, *options)
        values: list[Array] = binding.copy_outputs_to_cpu()
        return values

    @property
    def _device_number(self) -> int:
        return int(self.device.partition(":")[2] or 0)

    def _open(self, form: _Form) -> Any:
        """Return a session for this; one is kept, because each holds the weights."""
        if self._opened is None or self._opened[0] != form:
            self._opened = None
            self._opened = form, self._make(form)
        return self._opened[1]

    def _make(self, form: _Form) -> Any:
        """Make a session of the part of the graph that is needed: onnxruntime would compute all of it."""
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads took 1.5x the CPU-s
        options.log_severity_level = 4  # what matters comes as an exception
        folder = str(self._file.folder)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        providers: list[Any] = ["CPUExecutionProvider"]
        if self.device != "cpu":
            providers.insert(0, (_CUDA, {"device_id": str(self._device_number), "use_tf32": "0"}))
        model = self._file.cut(
            sorted(form.wanted), unsigned=self._unsigned, padded=form.padded, in_pieces=form.in_pieces
        )
        session = self._runtime.InferenceSession(model, options, providers=providers)
        self._file.verify_unchanged()  # it is the runtime that has read the weights
        return session

    def _choose_device(self, name: str) -> str:
        """Turn `auto`, `cpu`, `cuda` or `cuda:N` into a device that runs the file."""
        kind, _, number = name.partition(":")
        if kind not in ("auto", "cpu", "cuda") or (number and not (kind == "cuda" and number.isdigit())):
            raise UsageError(f"unknown device {name!r}", hint="Known: auto, cpu, cuda, cuda:N.")
        packed = self._file.header.attention == "packed"
        if name == "cpu" or (name == "auto" and _CUDA not in self._runtime.get_available_providers() and not packed):
            if packed:
                raise UsageError(
                    f"{self._file.path}: was exported for CUDA (--attention packed), and does not run on a CPU",
                    hint="Export the model again without --attention packed.",
                )
            return "cpu"
        problem = self._try_cuda(f"cuda:{number or 0}")
        if not problem:
            return f"cuda:{number or 0}"
        if name == "auto" and not packed:
            warnings.warn(f"{problem}: going on on the CPU", stacklevel=1)
            return "cpu"
        other = "Export the model again without --attention packed" if packed else "--device cpu"
        raise UsageError(problem, hint=f"{other}, or look at nvidia-smi and pip install 'protembed[onnx-gpu]'.")

    def _try_cuda(self, device: str) -> str:
        """Open the smallest part of the file on a GPU; return what is wrong, or nothing."""
        if _CUDA not in self._runtime.get_available_providers():
            return "this onnxruntime was built without CUDA"
        self.device = device
        if hasattr(self._runtime, "preload_dlls"):
            self._runtime.preload_dlls()  # CUDA's libraries from the packages that pip installs
        try:
            session = self._make(_Form(wanted=frozenset(("hidden.0",))))
        except _errors() as error:
            return f"onnxruntime cannot use {device} ({_first_line(error)})"
        return (
            ""
            if _CUDA in session.get_providers()
            else f"onnxruntime finds no usable GPU or CUDA libraries for {device}"
        )


def saturates(runtime: Any) -> bool:
    """Tell whether this CPU cuts off sums in products of unsigned and signed 8-bit numbers: x86 without VNNI does."""
    drawing = Drawing({}, weights="int8", half=False)
    drawing.graph.inputs["x"] = Value(dtype="uint8", shape=(8, 64))
    drawing.graph.weights["weight"] = np.full((64, 64), 127, dtype=np.int8)
    drawing.output("y", Value(dtype="int32", shape=(8, 64)), "MatMulInteger", "x", "weight")
    session = runtime.InferenceSession(serialise(drawing.graph), providers=["CPUExecutionProvider"])
    (product,) = session.run(["y"], {"x": np.full((8, 64), 255, dtype=np.uint8)})
    return bool((product != 64 * 255 * 127).any())


def _errors() -> tuple[type[Exception], ...]:
    """Return onnxruntime's exceptions; they have no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        *("Fail", "RuntimeException", "EPFail", "NotImplemented", "InvalidGraph", "InvalidProtobuf", "NoSuchFile"),
        "InvalidArgument",  # also of a graph whose nodes read what is not there
    )
    return (
        MemoryError,
        RuntimeError,
        UnicodeDecodeError,
        *(getattr(state, name) for name in names if hasattr(state, name)),
    )


def _is_short_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _SHORT_OF_MEMORY)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:500]
