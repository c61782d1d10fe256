"""The seam between what protembed does and the runtime that computes: tokens in, named arrays out."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from protembed.models.config import ModelCard
from protembed.models.head_config import HeadCard
from protembed.sequences.batching import TokenBatch

Output = tuple[str, int]
"""A kind (residues, mean, max, cls, logits, profile, pooled) and a layer, counted from 0 (embedding) to n_layers."""

Outputs = Mapping[Output, npt.NDArray[np.floating[Any]]]
"""Residues, logits and profiles are (T, ...) with special tokens in, pooled ones (N, D)."""


class Backend(Protocol):
    """Runs one model on token batches. Nothing above this line knows the runtime.

    Raises OutOfMemoryError when a batch does not fit; the caller may split it and run the parts. The error refers to
    nothing of the batch, so that its memory is free by then. A signal ends a computation within a second or two.
    """

    card: ModelCard

    @property
    def description(self) -> str:
        """Runtime, device and arithmetic, for people: `torch, cuda:1, bfloat16`."""

    @property
    def computed_with(self) -> str:
        """What results depend on, whichever device of a kind computes them: `torch, cuda, bfloat16`."""

    def budget(self) -> int:
        """How many tokens a batch should hold on this device."""

    def operations_per_second(self) -> float:
        """Guess the speed of this device from one matrix product, for estimates."""

    def run(self, batch: TokenBatch, wanted: Collection[Output]) -> Outputs:
        """Compute the outputs asked for."""

    def contacts(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Compute the probabilities of contact of one protein; (L + specials,) -> (L, L). Raises ModelError."""

    def attentions(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Compute the attention maps of one protein; (T,) -> (n_layers, H, T, T), special tokens in."""


@runtime_checkable
class Predictor(Backend, Protocol):
    """A backend that runs task heads, too: hidden states go no further than this line."""

    included: Mapping[str, HeadCard]
    """Heads that came with the model, by task; they need no `attach`."""

    def attach(self, path: Path) -> HeadCard:
        """Load a head beside the model, under the name of its task. Raises ModelError for another encoder's."""

    def predict(self, batch: TokenBatch, tasks: Collection[str]) -> Mapping[str, list[npt.NDArray[np.float32]]]:
        """Run the encoder once and the heads of these tasks on it; one array a protein, special tokens left out.

        Residues (L, C), proteins (C,), contacts (L, L): logits, or values before HeadCard.scale.
        """
