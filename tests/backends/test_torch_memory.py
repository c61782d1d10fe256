"""The torch runtime when memory is short: what a failed batch computed is gone before a smaller one is tried."""

import gc
import weakref

import numpy as np
import pytest
import torch

from protembed.backends.torch_backend import TorchBackend
from protembed.errors import OutOfMemoryError
from protembed.inference.embed import Embedding, EmbedOptions, embed
from protembed.models.protein_model import ProteinModel
from protembed.sequences.batching import TokenBatch
from protembed.sequences.records import Record

RECORDS = [Record(str(number), "MKTAYIAKQR"[: number + 2]) for number in range(8)]


class Device:
    """A device of `room` activations: wraps a model's `outputs`, and counts the activations that are alive."""

    def __init__(self, model: ProteinModel, room: int, error: Exception) -> None:
        self._outputs, self._room, self._error = model.outputs, room, error
        self.live: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
        self.live_at_emptying: list[int] = []

    def outputs(self, tokens: torch.Tensor, packed: object, wanted: object) -> object:
        activations = [torch.zeros(1) for _ in packed.lengths]  # type: ignore[attr-defined]
        self.live.update(activations)
        if len(self.live) > self._room:
            raise type(self._error)(*self._error.args)  # a fresh one: a kept error would keep its traceback
        return self._outputs(tokens, packed, wanted)  # type: ignore[arg-type]

    def empty_cache(self) -> None:
        self.live_at_emptying.append(len(self.live))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory"),
    ],
    ids=["cuda", "cpu", "cublas", "driver"],
)
def test_all_of_eight_succeed_where_any_five_fit(
    model: ProteinModel, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    expected = list(embed(RECORDS, TorchBackend(model), EmbedOptions()))
    device = Device(model, room=5, error=error)
    monkeypatch.setattr(model, "outputs", device.outputs)
    monkeypatch.setattr(torch.cuda, "empty_cache", device.empty_cache)
    gc.collect()
    gc.disable()
    try:
        found = list(embed(RECORDS, TorchBackend(model), EmbedOptions()))
    finally:
        gc.enable()
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Embedding)
        assert isinstance(other, Embedding)
        np.testing.assert_allclose(one.vector, other.vector, atol=1e-6)
    assert device.live_at_emptying == [0]


def test_other_errors_stay_what_they_are(model: ProteinModel, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(model, room=0, error=RuntimeError("CUDA error: device-side assert triggered"))
    monkeypatch.setattr(model, "outputs", device.outputs)
    batch = TokenBatch.of([model.card.alphabet.encode("MK")])
    with pytest.raises(RuntimeError, match="device-side assert"):
        TorchBackend(model).run(batch, [("mean", 2)])


def test_the_error_holds_nothing_of_the_batch(model: ProteinModel, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(model, room=0, error=torch.OutOfMemoryError("CUDA out of memory"))
    monkeypatch.setattr(model, "outputs", device.outputs)
    with pytest.raises(OutOfMemoryError) as caught:
        TorchBackend(model).run(TokenBatch.of([model.card.alphabet.encode("MK")]), [("mean", 2)])
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None
