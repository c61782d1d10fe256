"""The objective: the losses of masked residues and of profiles as a module, and the stream of steps that feed it."""

import itertools
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from protembed.models.packing import Packed
from protembed.models.protein_model import ProteinModel
from protembed.training.corpus.packing import Cursor, MicroBatch, Packing
from protembed.training.pretrain.batches import IGNORED, Batch, Shape
from protembed.training.pretrain.config import MaskSection
from protembed.training.pretrain.masking import mask_tokens
from protembed.training.pretrain.profile import profile_targets

AHEAD = 2  # steps made while others are computed
Item = TypeVar("Item")


class MaskedResidues(nn.Module):
    """A model and its loss in one module, so that one call is all that is divided among processes."""

    def __init__(self, model: ProteinModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Tensor, layout: Packed, places: Tensor, targets: Tensor, profile: Tensor | None = None
    ) -> Tensor:
        """Return the cross entropy (nats) of every place asked for; the head runs on those alone; (M,).

        With `profile` (T, 20), the cross entropy of every token's profile comes behind them; (M + T,).
        """
        hidden = self.model(tokens, layout)  # (T, D)
        logits = self.model.logits(hidden[places])  # (M, vocab_size)
        losses: Tensor = nn.functional.cross_entropy(logits.float(), targets, reduction="none", ignore_index=IGNORED)
        if profile is None:
            return losses
        scores = self.model.profile_logits(hidden).float().log_softmax(dim=-1)  # (T, 20)
        return torch.cat((losses, -(profile * scores).sum(dim=-1)))


@dataclass(frozen=True, kw_only=True)
class Step:
    """One update: this process's batches, the tokens of all processes, and the place in the data behind it."""

    batches: Sequence[Batch]
    tokens: int
    cursor: Cursor


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The steps of a run: R processes with A batches each see what one sees with R times A of them."""

    packing: Packing
    mask: MaskSection
    rank: int
    ranks: int
    accumulate: int
    shape: Shape | None = None
    background: npt.NDArray[np.float32] | None = None
    """Pseudocounts (20,) of profiles; None where no profiles are predicted."""

    def after(self, cursor: Cursor, done: int) -> Iterator[Step]:
        """Yield steps without end, from a place in the data on; `done` steps were made before."""
        plan = self.packing.plan(cursor)
        for number in itertools.count(done):
            micro = list(itertools.islice(plan, self.ranks * self.accumulate))
            mine = range(self.rank, len(micro), self.ranks)
            yield Step(
                batches=[self._batch(micro[place], number, place) for place in mine],
                tokens=sum(int(self.packing.sizes(batch.indices).sum()) for batch in micro),
                cursor=micro[-1].cursor,
            )

    def _batch(self, micro: MicroBatch, step: int, place: int) -> Batch:
        proteins = self.packing.read(micro)
        rng = np.random.default_rng((self.packing.seed, step, place))
        question = mask_tokens(np.concatenate(proteins), self.packing.alphabet, self.mask, rng)
        batch = Batch(lengths=[len(protein) for protein in proteins], question=question)
        if self.background is not None:
            counts = np.concatenate(self.packing.read_counts(micro))
            tokens = np.concatenate(proteins)
            batch = replace(batch, profile=profile_targets(tokens, counts, self.packing.alphabet, self.background))
        return batch if self.shape is None else self.shape.fill(replace(batch, longest=self.shape.longest))


def ahead(items: Iterator[Item], depth: int = AHEAD) -> Generator[Item, None, None]:
    """Make items in a thread while the caller works; an error there is raised here.

    The thread ends with the items, or when the generator is closed.
    """
    made: queue.Queue[Item | BaseException] = queue.Queue()
    room = threading.Semaphore(depth)
    closed = threading.Event()

    def work() -> None:
        try:
            for item in items:
                made.put(item)
                room.acquire()
                if closed.is_set():
                    return
            made.put(StopIteration())
        except Exception as error:
            made.put(error)

    threading.Thread(target=work, daemon=True, name="data").start()
    try:
        while not isinstance(item := made.get(), StopIteration):
            if isinstance(item, BaseException):
                raise item
            room.release()
            yield item
    finally:
        closed.set()
        room.release()
