"""One run of `protembed contacts`: survey the input, compute the contact map of every protein, write and draw them."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from protembed.backends.base import Backend
from protembed.errors import OutOfMemoryError
from protembed.inference.run import Progress, check_space
from protembed.outputs.hdf5 import Attributes, HDF5Writer, describe_origin
from protembed.outputs.plots import draw_contacts, file_name, make_folder, require_matplotlib
from protembed.outputs.target import Target
from protembed.sequences.records import Record, read_fasta
from protembed.sequences.survey import KeyKind, UnknownPolicy, assign_distinct_keys, survey
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
    """Where maps go, `plots` being a folder for one picture a protein, and what happens to the input."""

    out: Path
    plots: Path | None = None
    store_dtype: Literal["float32", "float16"] = "float16"
    unknown: UnknownPolicy = "x"
    key: KeyKind = "id"
    resume: bool = False
    overwrite: bool = False


def contact_map(record: Record, backend: Backend) -> ContactMap | Failure:
    """Compute one map; a protein over the model's limit, or too large for the memory, is a Failure."""
    limit, length = backend.card.max_residues, len(record.sequence)
    if limit is not None and length > limit:
        return Failure(record=record, reason=f"{length} residues are more than {limit}, and a map needs all at once")
    try:
        contacts = backend.contacts(backend.card.alphabet.encode(record.sequence))
    except (OutOfMemoryError, MemoryError):
        return Failure(record=record, reason=f"the attention maps of {length} residues do not fit into memory")
    if not np.isfinite(contacts).all():
        return Failure(record=record, reason="the map is not finite; --dtype float32 may help")
    return ContactMap(record=record, contacts=contacts)


class ContactJob:
    """Computes the contact maps of FASTA files.

    Making it reads the input once and touches nothing; `run` computes. Raises ModelError for a model without a
    contact regression, InputError for two records with one key, DependencyError when pictures cannot be drawn.
    """

    def __init__(self, paths: Sequence[str], backend: Backend, options: ContactOptions) -> None:
        backend.card.require_contacts()
        if options.plots is not None:
            require_matplotlib()
        self._backend, self._options = backend, options
        self._target = Target(contacts=options.out)
        self._read = partial(read_fasta, paths)
        alphabet = backend.card.alphabet
        self.survey = survey(self._read, alphabet=alphabet, unknown=options.unknown, key=options.key)
        if self.survey.repeated:
            deque(self._named(), maxlen=0)
        self.failed = 0

    @property
    def residues(self) -> int:
        """Residues of the input."""
        return self.survey.residues

    def summary(self) -> list[str]:
        """Say what was done, and whatever was not plain about the input."""
        lines = [f"{self.survey.records:,} records, {self.survey.residues:,} residues -> {self._options.out}"]
        noted = {
            f"letters outside the alphabet, read as {self._backend.card.alphabet.unknown}": self.survey.unknown,
            "gaps removed": self.survey.gaps,
            f"records without a result, listed in {self._target.failures}": self.failed,
        }
        return lines + [f"{count:,} {what}" for what, count in noted.items() if count]

    def run(self) -> Iterator[Progress]:
        """Compute and write everything; yield after every protein. `failed` then counts records without a result."""
        options, attributes = self._options, self._attributes()
        needed = np.dtype(options.store_dtype).itemsize * int((self.survey.lengths.astype(np.int64) ** 2).sum())
        check_space(options.out.parent, needed, hint="Choose another folder, or split the input.")
        if options.plots is not None:
            make_folder(options.plots)
        writer = HDF5Writer(
            self._target,
            {"contacts": attributes},
            fingerprint={"input": self.survey.digest, "key": options.key, "attributes": dict(attributes)},
            store_dtypes={"contacts": options.store_dtype},
            resume=options.resume,
            overwrite=options.overwrite,
        )
        if writer.complete:
            self.failed = self._target.count_failures()
            yield Progress(records=self.survey.records, residues=self.survey.residues)
            return
        with writer:
            yield from self._compute(writer)
            self.failed = writer.finish()

    def _compute(self, writer: HDF5Writer) -> Iterator[Progress]:
        residues = int(self.survey.lengths[: writer.done].sum(dtype=np.int64))
        yield Progress(records=writer.done, residues=residues)
        for position, (key, record) in enumerate(islice(self._named(), writer.done, None), start=writer.done + 1):
            result = contact_map(record, self._backend)
            if self._options.plots is not None and isinstance(result, ContactMap):
                draw_contacts(result.contacts, self._options.plots / file_name(key), title=record.id)
            writer.add(key, result)
            writer.batch_done(position)
            residues += len(record.sequence)
            yield Progress(records=position, residues=residues)

    def _named(self) -> Iterator[tuple[str, Record]]:
        return assign_distinct_keys(self._read(), self.survey, kind=self._options.key)

    def _attributes(self) -> Attributes:
        return {
            **describe_origin(self._backend.card, self._backend.computed_with),
            "content": "contacts",
            "dtype": self._options.store_dtype,
            "special_tokens_excluded": True,
            "long_proteins": "none",
        }
