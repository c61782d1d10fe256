"""What one process computes at once: packed tokens with some residues hidden, on the host and on the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from protembed.models.packing import Packed
from protembed.training.pretrain.masking import MaskedTokens

IGNORED = -100  # torch.nn.functional.cross_entropy's: a place that only fills up

Inputs = tuple[Tensor, Packed, Tensor, Tensor, Tensor | None]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Sequences end to end, as the model sees them: `lengths` of each (N,), and the question about them.

    `longest` stands where it is to be the same for all batches, `profile` (T, 20) where profiles are predicted, too: a
    distribution per token, or zeros where nothing is asked.
    """

    lengths: Sequence[int]
    question: MaskedTokens
    longest: int | None = None
    profile: npt.NDArray[np.float32] | None = None

    @property
    def count(self) -> int:
        """Residues asked for; places that only fill up are none."""
        return int((self.question.targets != IGNORED).sum())

    @property
    def profiled(self) -> int:
        """Tokens whose profile is asked for."""
        return 0 if self.profile is None else int(self.profile.any(axis=1).sum())

    def on(self, device: torch.device) -> Inputs:
        """Return tokens (T,), their layout, places (M,), targets (M,) and profiles (T, 20) or None on a device."""
        question = self.question
        tokens, places, targets = (_move(x, device) for x in (question.tokens, question.places, question.targets))
        profile = None if self.profile is None else _move(self.profile, device)
        return tokens, Packed(self.lengths, device, longest=self.longest), places, targets, profile


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The one shape that compiled code sees: T tokens, M places, and the longest sequence."""

    tokens: int
    places: int
    longest: int
    pad_id: int

    def fill(self, batch: Batch) -> Batch:
        """Fill a batch up: pad tokens as sequences of their own, empty sequences to a power of two, ignored places.

        >>> question = MaskedTokens(tokens=np.array([2, 1, 3]), places=np.array([1]), targets=np.array([7]))
        >>> shape = Shape(tokens=8, places=2, longest=4, pad_id=0)
        >>> shape.fill(Batch(lengths=[3], question=question)).lengths
        [3, 4, 1, 0]
        """
        question = batch.question
        left = self.tokens - len(question.tokens)
        pads = [self.longest] * (left // self.longest) + ([left % self.longest] if left % self.longest else [])
        lengths = [*batch.lengths, *pads]
        lengths += [0] * (2 ** (len(lengths) - 1).bit_length() - len(lengths))
        spare = self.places - batch.count
        filled = MaskedTokens(
            tokens=np.pad(question.tokens, (0, left), constant_values=self.pad_id),
            places=np.pad(question.places, (0, spare)),
            targets=np.pad(question.targets, (0, spare), constant_values=IGNORED),
        )
        profile = None if batch.profile is None else np.pad(batch.profile, ((0, left), (0, 0)))
        return Batch(lengths=lengths, question=filled, longest=self.longest, profile=profile)


def _move(values: npt.NDArray[np.int64] | npt.NDArray[np.float32], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(values)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
