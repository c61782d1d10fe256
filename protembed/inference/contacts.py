"""Contact maps from the attention maps of a model, and what `protembed contacts` writes and draws of them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from protembed.backends.base import Backend
from protembed.errors import OutOfMemoryError, UsageError, require_whole
from protembed.inference.assembly import Cutting
from protembed.inference.run import Part, Run, RunOptions
from protembed.models.cost import DATASET_BYTES
from protembed.outputs.hdf5 import HDF5Form, describe_origin
from protembed.outputs.output_file import OutputFile
from protembed.outputs.plots import draw_contacts, file_name, make_folder, require_matplotlib
from protembed.outputs.target import is_stream, name_shard, require_ending
from protembed.sequences.files import AnyPath
from protembed.sequences.records import Record
from protembed.sequences.windows import Failure


@dataclass(frozen=True, kw_only=True)
class ContactMap:
    """One protein and its probabilities of contact (L, L)."""

    record: Record
    contacts: npt.NDArray[np.float32]

    @property
    def arrays(self) -> dict[str, npt.NDArray[np.float32] | None]:
        """What is written, by the kind of file."""
        return {"contacts": self.contacts}


@dataclass(frozen=True, kw_only=True)
class ContactOptions:
    """Where maps go, `plots` being a folder for one picture per protein, and what happens to long proteins.

    A map needs its protein in one piece: one over the model's limit, or `max_length`, is a Failure or an error.
    """

    out: Path
    plots: Path | None = None
    store_dtype: Literal["float32", "float16"] = "float16"
    long: Literal["skip", "error"] = "skip"
    max_length: int | None = None

    def __post_init__(self) -> None:
        require_whole("max_length", self.max_length, least=2)


def contact_map(record: Record, backend: Backend, limit: int | None = None) -> ContactMap | Failure:
    """Compute one map; a protein over the limit, or too large for the memory, is a Failure."""
    length = len(record.sequence)
    if not length:
        return Failure(record=record, reason="it has no residues")
    limits = [number for number in (limit, backend.card.max_residues) if number is not None]
    if limits and length > min(limits):
        reason = f"{length} residues are more than {min(limits)}, and a map needs all at once"
        return Failure(record=record, reason=reason)
    try:
        contacts = backend.contacts(backend.card.alphabet.encode(record.sequence))
    except (OutOfMemoryError, MemoryError):
        return Failure(record=record, reason=f"the attention maps of {length} residues do not fit into memory")
    if not np.isfinite(contacts).all():
        return Failure(record=record, reason="the map is not finite; --dtype float32 may help")
    return ContactMap(record=record, contacts=contacts)


def contact_run(
    paths: Sequence[AnyPath], backend: Backend, options: ContactOptions, run: RunOptions | None = None
) -> Run[ContactMap]:
    """Prepare a run of `contacts`; see Run.

    Raises ModelError for a model without a contact regression, DependencyError when pictures cannot be drawn.
    """
    run = run or RunOptions()
    backend.card.require_contacts()
    if options.plots is not None:
        require_matplotlib()
    if is_stream(options.out):
        raise UsageError(f"{options.out}: HDF5 cannot go to standard output, a pipe or a device", hint="-o OUT.h5")
    require_ending(options.out, "h5")
    return Run(paths, _ContactWork(backend, options, name_shard(options.out, run.shard)), run)


class _ContactWork:
    """See run.Work."""

    title = ""
    max_tokens = None

    def __init__(self, backend: Backend, options: ContactOptions, out: Path) -> None:
        self.backend = backend
        self.cutting = Cutting(long=options.long, max_length=options.max_length)
        self.outputs = [out]
        self._options = options

    @property
    def content(self) -> dict[str, Any]:
        return {"long": self._options.long, "max_length": self._options.max_length}

    def files(self, part: Part) -> list[OutputFile]:
        dtype = self._options.store_dtype
        form = HDF5Form(
            kind="contacts",
            dtype=dtype,
            attributes={
                **describe_origin(self.backend.card, self.backend.computed_with),
                "content": "contacts",
                "dtype": dtype,
                "special_tokens_excluded": True,
                "long_proteins": "none",
            },
        )
        squares = int((part.lengths.astype(np.int64) ** 2).sum())
        size = np.dtype(dtype).itemsize * squares + len(part.lengths) * DATASET_BYTES
        return [OutputFile(path=self.outputs[0], form=form, size=size)]

    def compute(self, records: Iterable[Record], budget: int) -> Iterator[list[ContactMap | Failure]]:
        """Compute one map at a time, and draw it."""
        plots = self._options.plots
        if plots is not None:
            make_folder(plots)
        limit = self.cutting.limit(self.backend)
        for record in records:
            item = contact_map(record, self.backend, limit)
            if plots is not None and isinstance(item, ContactMap):
                draw_contacts(item.contacts, plots / file_name(record.key), title=record.id)
            yield [item]
