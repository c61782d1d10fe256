"""From what a user calls a model to a backend that runs it."""

import ctypes
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from protembed.backends.base import Backend, Predictor
from protembed.backends.onnx.cache import find_exported
from protembed.backends.onnx.file import OnnxFile
from protembed.checkpoints.find import find_model
from protembed.checkpoints.registry import show_terms
from protembed.errors import ModelError, OutputError, UsageError, require_whole
from protembed.models.config import DEFAULT_MODEL, ModelCard
from protembed.outputs.files import write_errors

if TYPE_CHECKING:
    from protembed.models.protein_model import ProteinModel

ONNX = ".onnx"


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, where and how it runs; `offline`: a model that is not there is not downloaded.

    The last three tell what a ProteinLM file may not say itself.
    """

    model: str = DEFAULT_MODEL
    device: str = "auto"
    dtype: str = "auto"
    backend: str = "auto"
    threads: int | None = None
    offline: bool = False
    variant: Literal["trained", "tape-port"] | None = None
    checkpoint_version: float | None = None
    n_heads: int | None = None

    def __post_init__(self) -> None:
        require_whole("threads", self.threads, least=1, most=1024)  # torch crashes at some thousands
        require_whole("n_heads", self.n_heads, least=1)


def open_model(options: ModelOptions) -> "ProteinModel":
    """Load a model of any supported form into torch."""
    import torch

    from protembed.backends.torch_backend import choose_device, choose_dtype
    from protembed.checkpoints import foreign as convert
    from protembed.checkpoints import native as checkpoint

    path = find_source(options)
    if path.suffix == ONNX:
        raise ModelError(
            f"{path}: an ONNX file runs in onnxruntime, and cannot be loaded into torch",
            hint="Give the checkpoint that it was exported from.",
        )
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    if checkpoint.is_native(path):
        if not says_everything(options):
            raise UsageError(
                f"{path}: a native checkpoint says everything itself; it takes no variant, version or heads"
            )
        model = checkpoint.load(path, device=device, dtype=dtype)
    else:
        model = convert.load_foreign(
            path,
            device=device,
            dtype=dtype,
            variant=options.variant,
            checkpoint_version=options.checkpoint_version,
            n_heads=options.n_heads,
        )
    show_terms(model.card.license)
    return model


def open_backend(options: ModelOptions) -> Backend:
    """Open a model for running. Raises ModelError, UsageError or DependencyError.

    Under `auto` an ONNX file runs in onnxruntime, and so does on a CPU a checkpoint whose ONNX file is at hand: torch
    is not imported, unless something is asked for that only torch computes.
    """
    if options.backend not in ("auto", "torch", "onnx"):
        raise UsageError(f"unknown backend {options.backend!r}", hint="Known: auto, torch, onnx.")
    if options.backend == "torch":
        return _open_torch(options)
    path = find_source(options)
    if path.suffix == ONNX:
        return _open_onnx(path, options)
    wanted = options.backend == "onnx" or _is_light(options)
    exported = find_exported(path) if wanted and says_everything(options) else None
    if options.backend == "onnx" and exported is None:
        raise ModelError(
            f"there is no ONNX file of {options.model}",
            hint=f"Once: protembed export {options.model}. Or give the path of one: -m FILE.onnx",
        )
    if exported is not None:
        return _open_onnx(exported, options, other=partial(_open_torch, options))
    return _open_torch(options)


def _open_torch(options: ModelOptions) -> Predictor:
    from protembed.backends.torch_backend import TorchBackend

    return TorchBackend(open_model(options))


def find_source(options: ModelOptions) -> Path:
    """Find the file or folder of a model. Raises ModelError for what can be neither."""
    if not options.model.strip():
        raise UsageError("no model is named", hint="`protembed models` lists the names; or give a path.")
    path = find_model(options.model, offline=options.offline)
    if not (path.is_file() or path.is_dir()):
        raise ModelError(f"{path}: is neither a file nor a folder", hint="A model is read more than once: no pipe.")
    return path


def _open_onnx(
    file: Path | OnnxFile, options: ModelOptions, *, other: Callable[[], Predictor] | None = None
) -> Backend:
    from protembed.backends.onnx.backend import OnnxBackend

    path = file if isinstance(file, Path) else file.path
    if not says_everything(options):
        raise UsageError(f"{path}: an ONNX file says everything itself; it takes no variant, version or heads")
    backend = OnnxBackend(file, device=options.device, threads=options.threads, other=other)
    if options.dtype not in ("auto", backend.arithmetic):
        raise UsageError(
            f"{path} computes in {backend.arithmetic}, not in {options.dtype}",
            hint="Leave out --dtype, or --backend torch with the checkpoint.",
        )
    show_terms(backend.card.license)
    return backend


def says_everything(options: ModelOptions) -> bool:
    """Tell whether nothing is told that a file does not say itself."""
    return (options.variant, options.checkpoint_version, options.n_heads) == (None, None, None)


def _is_light(options: ModelOptions) -> bool:
    """Tell whether `auto` takes onnxruntime: it is installed, in float32, and no GPU is waiting for torch."""
    if options.dtype not in ("auto", "float32") or importlib.util.find_spec("onnxruntime") is None:
        return False
    return options.device == "cpu" or (options.device == "auto" and not has_gpu())


def has_gpu() -> bool:
    """Tell whether the CUDA driver sees a GPU, without importing torch."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def convert_model(options: ModelOptions, out: Path, *, overwrite: bool) -> ModelCard:
    """Write any checkpoint as a native one. Raises OutputError when `out` exists and is not to be replaced."""
    from protembed.checkpoints import native as checkpoint

    if out.suffix != ".safetensors":
        raise OutputError(f"{out}: a native checkpoint ends in .safetensors")
    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists", hint="--overwrite replaces it.")
    model = open_model(options)
    with write_errors(out):
        return checkpoint.save(model, out, dtype=model.encoder.embedding.weight.dtype)
