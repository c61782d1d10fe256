"""The torch runtime: a ProteinModel on a CPU or a CUDA device."""

import contextlib
import functools
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from protembed.backends.base import Output, Outputs
from protembed.checkpoints.foreign.heads import load_foreign_head
from protembed.checkpoints.head_arrays import is_own
from protembed.checkpoints.head_files import load_head
from protembed.errors import OutOfMemoryError, UsageError
from protembed.models.head_config import HeadCard
from protembed.models.heads.base import TaskHead
from protembed.models.heads.run import run_heads
from protembed.models.packing import Packed
from protembed.models.protein_model import ProteinModel
from protembed.sequences.batching import TokenBatch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

CPU_TOKENS = 1024
"""On a CPU larger batches are no faster and take more memory."""

CUDA_TOKENS = 65_536
"""On a GPU larger batches are no faster."""

_SHORT_OF_MEMORY = (
    *("DefaultCPUAllocator", "bad_alloc", "out of memory", "not enough memory", "ALLOC_FAILED"),
    "could not create a primitive",  # oneDNN
)
"""What torch and its libraries say, beside raising torch.OutOfMemoryError: most of them have no exception class."""


def _computation(compute: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Run without gradients and in full precision; turn a shortage of memory into OutOfMemoryError.

    The error is raised after the `except` block and without a cause: the traceback of torch's own error would keep
    every activation of the failed batch alive while the caller runs its halves.
    """

    @functools.wraps(compute)
    def computed(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            with torch.inference_mode(), _full_precision():
                return compute(*args, **kwargs)
        except (RuntimeError, MemoryError) as error:
            if not _is_short_of_memory(error):
                raise
            reason = str(error)
            _let_go(error)
        torch.cuda.empty_cache()
        raise OutOfMemoryError(reason)

    return computed


def _is_short_of_memory(error: Exception) -> bool:
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(words in str(error) for words in _SHORT_OF_MEMORY)


def _let_go(error: BaseException | None) -> None:
    """Drop the local variables of all frames that an error and those behind it refer to."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Keep convolutions of float32 heads in float32 on a GPU: cuDNN's default is TF32, which has 10 bits."""
    if not torch.cuda.is_available():
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def choose_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into a device that is there; raises UsageError otherwise."""
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}", hint="Known: auto, cpu, cuda, cuda:N.") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r} is not supported", hint="Known: auto, cpu, cuda, cuda:N.")
    if device.type == "cuda" and not available:
        raise UsageError("no CUDA device is available", hint="--device cpu, or check nvidia-smi and the torch build.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"there is no {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Turn a name into a dtype; `auto` is float32 on a CPU, bfloat16 on a GPU (float16 on one older than Ampere)."""
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise UsageError(f"unknown dtype {name!r}", hint=f"Known: auto, {', '.join(known)}.")
    return known[name]


class TorchBackend:
    """Runs a ProteinModel; see backend.Backend."""

    def __init__(self, model: ProteinModel) -> None:
        self.card = model.card
        self.included: Mapping[str, HeadCard] = {}
        self._model = model
        weights = model.encoder.embedding.weight
        self._device, self._dtype = weights.device, weights.dtype
        self._cards: dict[Path, HeadCard] = {}
        self._heads: dict[str, TaskHead] = {}

    @property
    def description(self) -> str:
        return f"torch, {self._device}, {self._arithmetic}"

    @property
    def computed_with(self) -> str:
        return f"torch, {self._device.type}, {self._arithmetic}"

    @property
    def _arithmetic(self) -> str:
        return str(self._dtype).removeprefix("torch.")

    def budget(self) -> int:
        if self._device.type != "cuda":
            return CPU_TOKENS
        config = self.card.encoder
        free, _ = torch.cuda.mem_get_info(self._device)
        widest = 6 * config.d_model + 3 * config.d_ff  # live activations of one block, in numbers a token
        return max(CPU_TOKENS, min(CUDA_TOKENS, int(0.5 * free / (widest * self._dtype.itemsize))))

    def operations_per_second(self) -> float:
        rows, config = 2048, self.card.encoder
        x = torch.ones(rows, config.d_model, device=self._device, dtype=self._dtype)
        weight = torch.ones(config.d_model, config.d_ff, device=self._device, dtype=self._dtype)
        _to_numpy((x @ weight)[:1])
        began = time.perf_counter()
        _to_numpy((x @ weight)[:1])
        efficiency = 0.5  # of a whole model against its matrix products alone, seen on CPUs
        return efficiency * 2 * rows * config.d_model * config.d_ff / (time.perf_counter() - began)

    @_computation
    def run(self, batch: TokenBatch, wanted: Collection[Output]) -> Outputs:
        outputs = self._model.outputs(self._move(batch.tokens), Packed(batch.lengths, self._device), wanted)
        return {name: _to_numpy(values) for name, values in outputs.items()}

    @_computation
    def contacts(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return _to_numpy(self._model.contacts(self._move(tokens)))

    @_computation
    def attentions(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return _to_numpy(self._model.attentions(self._move(tokens)))

    def attach(self, path: Path) -> HeadCard:
        if path not in self._cards:
            if is_own(path):
                head, card = load_head(path, device=self._device)
            else:
                head, card = load_foreign_head(path, self.card, device=self._device)
            card.require_encoder(self.card)
            if card.task in self._heads:
                raise UsageError(f"{path}: there is another head for {card.task}", hint="One head a task in one run.")
            self._heads[card.task], self._cards[path] = head, card
        return self._cards[path]

    @_computation
    def predict(self, batch: TokenBatch, tasks: Collection[str]) -> Mapping[str, list[npt.NDArray[np.float32]]]:
        heads = {task: self._heads[task] for task in tasks}
        outputs = run_heads(self._model, heads, self._move(batch.tokens), Packed(batch.lengths, self._device))
        return {task: [_to_numpy(values) for values in proteins] for task, proteins in outputs.items()}

    def _move(self, tokens: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(tokens).to(self._device)


def _to_numpy(values: Tensor) -> npt.NDArray[np.floating[Any]]:
    """Move values to the host; numpy has no bfloat16."""
    array: npt.NDArray[np.floating[Any]] = (values.float() if values.dtype == torch.bfloat16 else values).cpu().numpy()
    return array
