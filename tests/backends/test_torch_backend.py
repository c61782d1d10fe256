"""The torch runtime where memory is short, where there are several GPUs, and where a signal comes."""

import gc
import signal
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from protembed import interrupts
from protembed.backends.torch_backend import CPU_TOKENS, CUDA_TOKENS, TorchBackend
from protembed.errors import OutOfMemoryError
from protembed.models import packing
from protembed.models.packing import Packed
from protembed.models.protein_model import ProteinModel
from protembed.sequences.alphabet import PROTEMBED
from protembed.sequences.batching import TokenBatch


def batch_of(*sequences: str) -> TokenBatch:
    return TokenBatch.of([PROTEMBED.encode(sequence) for sequence in sequences])


class Failing:
    """Stands in for a model whose batch does not fit: it holds activations when torch says so."""

    def __init__(self, model: ProteinModel, error: Exception) -> None:
        self.card, self.encoder = model.card, model.encoder
        self._error = error
        self.activations: list[weakref.ref[Any]] = []

    def outputs(self, tokens: torch.Tensor, layout: Packed, wanted: Any) -> Any:
        hidden = torch.ones(len(tokens), 32)
        self.activations.append(weakref.ref(hidden))
        try:
            return self._deeper(hidden + 1)
        except RuntimeError as error:
            raise type(error)(*error.args) from error  # as libraries between us and torch do

    def _deeper(self, hidden: torch.Tensor) -> Any:
        self.activations.append(weakref.ref(hidden))
        raise self._error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_out_of_memory_keeps_nothing_of_the_batch_alive(model: ProteinModel, error: Exception) -> None:
    failing = Failing(model, error)
    backend = TorchBackend(failing)  # type: ignore[arg-type]
    gc.disable()  # nobody may have to wait for it
    try:
        with pytest.raises(OutOfMemoryError) as caught:
            backend.run(batch_of("MKT"), [("mean", 2)])
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None
        assert len(failing.activations) == 2
        assert [activation() for activation in failing.activations] == [None, None]
    finally:
        gc.enable()


def test_other_errors_stay_what_they_are(model: ProteinModel) -> None:
    backend = TorchBackend(Failing(model, RuntimeError("shapes do not match")))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="shapes do not match"):
        backend.run(batch_of("MKT"), [("mean", 2)])


@pytest.mark.parametrize(
    ("free", "tokens"),
    [
        (0, CPU_TOKENS),  # a batch is never empty
        (2 * 4 * 384 * 5000, 5000),  # half the free memory; 6 x 32 + 3 x 64 numbers of 4 bytes a token
        (10**12, CUDA_TOKENS),
    ],
)
def test_a_batch_takes_half_the_memory_of_the_gpu(
    model: ProteinModel, free: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = TorchBackend(model)
    assert backend.budget() == CPU_TOKENS == 1024
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
    monkeypatch.setattr(backend, "_device", SimpleNamespace(type="cuda"))
    assert backend.budget() == tokens
    assert CUDA_TOKENS == 65_536


def test_results_do_not_depend_on_which_gpu_it_is(model: ProteinModel, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = TorchBackend(model)
    assert backend.description == backend.computed_with == "torch, cpu, float32"
    monkeypatch.setattr(backend, "_device", torch.device("cuda:1"))
    monkeypatch.setattr(backend, "_dtype", torch.bfloat16)
    assert backend.description == "torch, cuda:1, bfloat16"
    assert backend.computed_with == "torch, cuda, bfloat16"


def test_convolutions_of_heads_run_in_full_precision_on_a_gpu(
    model: ProteinModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Watched(Failing):
        def outputs(self, tokens: torch.Tensor, layout: Packed, wanted: Any) -> Any:
            seen.append((torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32))
            return {}

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    TorchBackend(Watched(model, ValueError())).run(batch_of("MKT"), [("mean", 2)])  # type: ignore[arg-type]
    assert seen == [(True, False)]


@pytest.fixture
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    interrupts.install()
    yield
    interrupts.clear()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers")
def test_a_signal_stops_between_layers(model: ProteinModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    attend = packing._attend_one

    def interrupted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        calls.append(len(calls))
        if len(calls) == 1:
            signal.raise_signal(signal.SIGTERM)
        return attend(q, k, v)

    monkeypatch.setattr(packing, "_attend_one", interrupted)
    with pytest.raises(interrupts.Interrupted), interrupts.deferred():
        TorchBackend(model).run(batch_of("MKT"), [("mean", 2)])
    assert calls == [0], "the second layer was not run"


@pytest.mark.usefixtures("_handlers")
def test_a_signal_stops_inside_one_huge_protein(model: ProteinModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "LARGEST_PIECE", 1)
    attend, rows = packing.scaled_dot_product_attention, []

    def interrupted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        rows.append(q.shape[2])
        if len(rows) == 2:
            signal.raise_signal(signal.SIGINT)
        return attend(q, k, v)

    monkeypatch.setattr(packing, "scaled_dot_product_attention", interrupted)
    with pytest.raises(interrupts.Interrupted), interrupts.deferred():
        TorchBackend(model).run(batch_of("M" * 1500), [("mean", 2)])
    assert rows == [512, 512]


def test_attention_in_pieces_is_the_same(model: ProteinModel, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of("MKTAYIAKQRQISFVKSHFSRQ" * 60, "MKT")
    (whole,) = TorchBackend(model).run(batch, [("residues", 2)]).values()
    monkeypatch.setattr(packing, "LARGEST_PIECE", 1)
    (pieces,) = TorchBackend(model).run(batch, [("residues", 2)]).values()
    np.testing.assert_allclose(pieces, whole, atol=1e-5)
