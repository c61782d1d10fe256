"""Computing a few records of a finished output again, to compare them with what is stored."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

import numpy as np
import numpy.typing as npt

from protembed.backends.base import Backend
from protembed.inference.contacts import contact_map
from protembed.inference.embed import EmbedOptions, Pool, embed
from protembed.inference.predict import PredictOptions, attach_heads, predict
from protembed.outputs.origin import Origin
from protembed.outputs.printing import printable
from protembed.outputs.safe_hdf5 import SafeFile
from protembed.sequences.records import Record
from protembed.sequences.windows import Failure

Array = npt.NDArray[np.floating[Any]]

FLOAT32_ERROR: Final = 1e-5
"""Of the largest value: what batches, threads and processors may change in float32, on one runtime."""

RUNTIME_ERROR: Final = 1e-4
"""The same between runtimes and devices: what an export is allowed."""

HALF_ERROR: Final = 2e-2
"""The same in bfloat16 and float16, or with weights that are stored so."""


@dataclass(frozen=True, kw_only=True)
class Recomputed:
    """How many records were computed again, and the largest difference that was found."""

    records: int
    difference: float


def loading_of(origin: Origin) -> tuple[str, str, str]:
    """Return what to load to compute an output again: the model it names, the number format, the runtime."""
    arithmetic, runtime = origin.arithmetic, origin.arithmetic[0]
    known = len(arithmetic) == 3 and arithmetic[2] in ("float32", "bfloat16", "float16")
    return origin.text("model_name"), arithmetic[2] if known else "auto", runtime if runtime == "torch" else "auto"


def recompute(origin: Origin, sample: Mapping[str, Record], backend: Backend, *, head: str | None = None) -> Recomputed:
    """Compute records again and compare them with those of a file, by key; `head` names one that is not bundled.

    Differences up to the rounding of the stored numbers and of the arithmetic are none. Raises OutputError for
    another model than the file's, and for the first record that differs.
    """
    require_model(origin, backend)
    allowed, largest = _allowed(origin, backend), 0.0
    with SafeFile(origin.path) as file:
        results = _compute(origin, list(sample.values()), backend, head)
        for key, (record, computed) in zip(sample, results, strict=True):
            stored = file[key].read()
            difference = _difference(stored, computed)
            if not difference <= allowed:
                raise origin.error(
                    f"{record} is not what the model computes: off by {difference:.2g} of its largest value, "
                    f"{allowed:.0e} are rounding",
                    hint="Compute the file again, or name the model it was made with.",
                )
            largest = max(largest, difference)
    return Recomputed(records=len(sample), difference=largest)


def require_model(origin: Origin, backend: Backend) -> None:
    """Raise OutputError unless a file was computed with the weights of this model."""
    if origin.text("weights_sha256") != backend.card.sha256:
        raise origin.error(
            f"was computed with other weights than those of {backend.card.name}",
            hint=f"It says that its model is {origin.text('model_name')}.",
        )


def _compute(
    origin: Origin, records: Sequence[Record], backend: Backend, head: str | None
) -> Iterator[tuple[Record, Array]]:
    """Yield what the file should hold of each record."""
    limit = origin.number("residue_limit") or None
    long = origin.text("long_policy") or origin.text("long_proteins")
    match origin.content:
        case "per-protein" | "per-residue" as kind:
            options = EmbedOptions(
                pool=None if kind == "per-residue" else _pool(origin),
                residues=kind == "per-residue",
                layer=origin.number("layer") or 0,
                long="truncate" if long == "truncate" else "split",
                max_length=limit,
            )
            for item in embed(records, backend, options):
                yield _result(origin, item, "residues" if kind == "per-residue" else "proteins")
        case "contacts" if not origin.text("task"):
            for record in records:
                yield _result(origin, contact_map(record, backend), "contacts")
        case _:
            yield from _predict(origin, records, backend, head or origin.text("task"), limit)


def _pool(origin: Origin) -> Pool:
    pools: tuple[Pool, ...] = get_args(Pool)
    for pool in pools:
        if pool == origin.text("pooling"):
            return pool
    raise origin.error(f"its pooling is {printable(origin.text('pooling'))!r}, not one of {', '.join(pools)}")


def _predict(
    origin: Origin, records: Sequence[Record], backend: Backend, head: str, limit: int | None
) -> Iterator[tuple[Record, Array]]:
    predictor, heads = attach_heads(backend, [head])
    if (heads[0].task, heads[0].sha256) != (origin.text("task"), origin.text("head_sha256")):
        raise origin.error(
            f"was predicted with another head than {head}", hint="Name the file of the head it was made with."
        )
    for item in predict(records, predictor, heads, PredictOptions(max_length=limit)):
        yield _result(origin, item, heads[0].task)


def _result(origin: Origin, item: Any, kind: str) -> tuple[Record, Array]:
    if isinstance(item, Failure):
        raise origin.error(f"{item.record} has a result in the file, and cannot be computed here: {item.reason}")
    return item.record, item.arrays[kind]


def _difference(stored: Array, computed: Array) -> float:
    """Return the largest difference beyond the rounding of what is stored, by the largest value (or 1)."""
    if stored.shape != computed.shape:
        return float("inf")
    exact = computed.astype(np.float64)
    rounding = np.finfo(stored.dtype).eps * np.abs(exact) + np.finfo(stored.dtype).smallest_subnormal
    beyond = np.abs(stored - exact) - rounding
    return float(max(beyond.max(), 0) / max(1.0, np.abs(exact).max()))


def _allowed(origin: Origin, backend: Backend) -> float:
    """Return what may differ between the arithmetic of a file and that of a backend."""
    here, there = backend.computed_with, origin.text("computed_with")
    if not all(text.split(", ")[-1] == "float32" for text in (here, there)):
        return HALF_ERROR
    return FLOAT32_ERROR if here == there else RUNTIME_ERROR
