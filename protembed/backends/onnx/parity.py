"""Whether an exported file computes what its model does: both run on the same proteins."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from protembed.backends.base import Output, Predictor
from protembed.backends.onnx.backend import OnnxBackend
from protembed.backends.onnx.heads import output_name
from protembed.errors import ModelError
from protembed.models.config import ModelCard
from protembed.sequences.batching import TokenBatch

PROTEINS = {
    "P0CG48": "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG",
    "P01308": "MALWMRLLPLLALLALWGPDPAAAFVNQHLCGSHLVEALYLVCGERGFFYTPKTRREAEDLQVGQVELGGGPGAGSLQPLALEGSLQKRGIVEQCCTSICSLYQLENYCN",  # noqa: E501
    "P61626": "MKALIVLGLVLLSVTVQGKVFERCELARTLKRLGMDGYRGISLANWMCLAKWESGYNTRATNYNAGDRSTDYGIFQINSRYWCNDGKTPGAVNACHLSCSALLQDNIADAVACAKRVVRDPQGIRAWVAWRNRCQNRDVRQYVQGCGV",  # noqa: E501
    "P69905": "MVLSPADKTNVKAAWGKVGAHAGEYGAEALERMFLSFPTTKTYFPHFDLSHGSAQVKGHGKKVADALTNAVAHVDDMPNALSALSDLHAHKLRVDPVNFKLLSHCLLVTLAAHLPAEFTPAVHASLDKFLASVSTVLTSKYR",  # noqa: E501
    "P0A7Y4": "MLKQVEIFTDGSCLGNPGPGGYGAILRYRGREKTFSAGYTRTTNNRMELMAAIVALEALKEHCEVILSTDSQYVRQGITQWIHNWKKRGWKTADKKPVKNVDLWQRLDAALGQHQIKWEWVKGHAGHPENERCDELARAAAMNPTLEDTGYQVEV",  # noqa: E501
}
"""Ubiquitin, insulin, lysozyme, haemoglobin alpha (human) and RNase H of E. coli: UniProtKB/Swiss-Prot, CC BY 4.0."""

TOLERANCE = 1e-4
"""Largest difference in float32, in units of an output's root mean square where that is more than 1."""

LOWEST_COSINE = {"float16": 0.999, "int8": 0.9}
"""What rounded weights may cost: a file below is of no use."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How near a file is to its model.

    `difference`: the largest one of all outputs, relative where an output's root mean square is more than 1.
    `cosine`: the smallest one between the two embeddings of a real protein, taken from the mean protein, without which
    all would be near 1. `padded`: the largest difference that padding makes, where a file allows it.
    """

    difference: float
    cosine: float
    padded: float = 0.0


def compare(backend: OnnxBackend, reference: Predictor, tasks: Sequence[str] = ()) -> Agreement:
    """Run both on real proteins, single residues, unknown letters and mask tokens.

    Layers 0, 1, the middle one and the last are compared, logits, profiles and pooled vectors where the model has them,
    and the outputs of the heads that both have for some tasks.
    """
    card = backend.card
    real = [card.alphabet.encode(sequence[: card.max_residues]) for sequence in PROTEINS.values()]
    last = card.encoder.n_layers
    wanted: list[Output] = [("residues", layer) for layer in sorted({0, min(1, last), last // 2, last})]
    wanted += [("logits", last)] * (card.mlm_head is not None) + [("pooled", last)] * (card.pooler is not None)
    wanted += [("profile", last)] * card.profile_head
    differences = []
    for batch in (TokenBatch.of(real), TokenBatch.of(_odd_proteins(card))):
        own, right = backend.run(batch, wanted), reference.run(batch, wanted)
        differences += [_difference(own[output], right[output]) for output in wanted]
        heads = zip(*(one.predict(batch, tasks).items() for one in (backend, reference)), strict=True)
        differences += [_difference(x, y) for (_, xs), (_, ys) in heads for x, y in zip(xs, ys, strict=True)]
    padded = 0.0 if backend.alone else max(_padding_differences(backend, real, tasks), key=_nan_first)
    means = [one.run(TokenBatch.of(real), [("mean", last)])["mean", last] for one in (backend, reference)]
    cosine = smallest_cosine(*means)
    return Agreement(difference=max(differences, key=_nan_first), cosine=cosine, padded=padded)


def _padding_differences(
    backend: OnnxBackend, proteins: Sequence[npt.NDArray[np.int64]], tasks: Sequence[str]
) -> list[float]:
    """Run the graph as other programs run it, on one padded batch, and compare it with every protein alone."""
    hidden = f"hidden.{backend.card.encoder.n_layers}"
    padded = backend.run_padded(proteins, [hidden, *map(output_name, tasks)])
    batch, starts = TokenBatch.of(proteins), np.cumsum([0, *map(len, proteins)])
    rows = backend.run(batch, [("residues", backend.card.encoder.n_layers)]).popitem()[1]
    alone = [[rows[start:stop] for start, stop in pairwise(starts)]]
    alone += backend.predict(batch, tasks).values()
    return [
        _difference(values[tuple(map(slice, right.shape))], right)
        for together, apart in zip(padded, alone, strict=True)
        for values, right in zip(together, apart, strict=True)
    ]


def require(agreement: Agreement, weights: str) -> None:
    """Raise ModelError for a file that is too far from its model."""
    lowest = LOWEST_COSINE.get(weights)
    if lowest is None and not agreement.difference <= TOLERANCE:
        reason = f"its outputs are up to {agreement.difference:.1e} from torch's"
    elif not agreement.padded <= TOLERANCE:
        reason = f"padding changes its outputs by up to {agreement.padded:.1e}"
    elif lowest is not None and not agreement.cosine >= lowest:
        reason = f"in {weights} its embeddings have a cosine of {agreement.cosine:.3f} with those of the model"
    else:
        return
    raise ModelError(f"the exported file is not accurate: {reason}", hint="It was removed. Please report the model.")


def smallest_cosine(own: npt.NDArray[Any], right: npt.NDArray[Any]) -> float:
    """Return the smallest cosine between two embeddings of a protein, both (N, D), from the mean of the second ones."""
    x, y = (values.astype(np.float64) - right.mean(axis=0, dtype=np.float64) for values in (own, right))
    return float(np.min((x * y).sum(axis=1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))))


def _odd_proteins(card: ModelCard) -> list[npt.NDArray[np.int64]]:
    """Make what real proteins seldom are: short, unknown, masked, and two of one length."""
    alphabet = card.alphabet
    sequences: Sequence[str] = ("M", "MK", "XXXX", "MKTAYIAKQR", "RQKAIYATKM")
    odd = [alphabet.encode(sequence[: card.max_residues]) for sequence in sequences]
    masked = alphabet.encode(PROTEINS["P0CG48"][: card.max_residues])
    masked[alphabet.prefix : len(masked) - alphabet.suffix : 7] = alphabet.mask_id
    return [*odd, masked]


def _difference(own: npt.NDArray[Any], right: npt.NDArray[Any]) -> float:
    scale = max(1.0, float(np.sqrt(np.mean(np.square(right, dtype=np.float64)))))
    return float(np.abs(own - right).max()) / scale


def _nan_first(value: float) -> float:
    return np.inf if np.isnan(value) else value
