"""What `protembed embed` computes and writes: a file of vectors, one of residues' rows, or both."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from protembed.backends.base import Backend
from protembed.errors import UsageError
from protembed.inference.embed import Embedding, EmbedOptions, embed_batches
from protembed.inference.run import Part, Run, RunOptions
from protembed.models.cost import DATASET_BYTES
from protembed.outputs.hdf5 import Attributes, HDF5Form, describe_origin
from protembed.outputs.output_file import OutputFile
from protembed.outputs.target import is_stream, name_shard, require_ending
from protembed.sequences.files import AnyPath
from protembed.sequences.records import Record
from protembed.sequences.windows import Failure


@dataclass(frozen=True, kw_only=True)
class EmbedOutput:
    """Where embeddings go, and how they are stored; None: residues as float16, vectors as float32."""

    proteins: Path | None = None
    residues: Path | None = None
    store_dtype: Literal["float32", "float16"] | None = None


def embed_run(
    paths: Sequence[AnyPath],
    backend: Backend,
    options: EmbedOptions,
    output: EmbedOutput,
    run: RunOptions | None = None,
) -> Run[Embedding]:
    """Prepare a run of `embed`; see Run. Raises UsageError for outputs that make no sense."""
    run = run or RunOptions()
    named = {"proteins": output.proteins, "residues": output.residues}
    files = {kind: name_shard(path, run.shard) for kind, path in named.items() if path is not None}
    if not files:
        raise UsageError("no output is named", hint="-o OUT.h5 (one vector per protein), --residues FILE, or both.")
    if output.proteins == output.residues:
        raise UsageError("-o and --residues name the same file", hint="Other tools expect one kind per file.")
    for path in files.values():
        if is_stream(path):
            raise UsageError(f"{path}: HDF5 cannot go to standard output, a pipe or a device", hint="-o OUT.h5")
        require_ending(path, "h5")
    return Run(paths, _EmbedWork(backend, options, files, output.store_dtype), run)


class _EmbedWork:
    """See run.Work; `files` are the outputs by kind."""

    title = ""

    def __init__(self, backend: Backend, options: EmbedOptions, files: dict[str, Path], dtype: str | None) -> None:
        self.backend, self.cutting, self.max_tokens = backend, options.cutting, options.max_tokens
        self.outputs = list(files.values())
        self._options, self._files, self._dtype = options, files, dtype

    @property
    def content(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self._options).items() if name != "max_tokens"}

    def files(self, part: Part) -> list[OutputFile]:
        width = self.backend.card.encoder.d_model
        values = {
            "proteins": len(part.lengths) * width * (2 if self._options.pool == "mean+max" else 1),
            "residues": part.residues * width,
        }
        described = []
        for kind, path in self._files.items():
            dtype = self._dtype or ("float16" if kind == "residues" else "float32")
            size = values[kind] * np.dtype(dtype).itemsize + len(part.lengths) * DATASET_BYTES
            form = HDF5Form(kind=kind, dtype=dtype, attributes=self._attributes(kind, dtype, part))
            described.append(OutputFile(path=path, form=form, size=size))
        return described

    def compute(self, records: Iterable[Record], budget: int) -> Iterator[list[Embedding | Failure]]:
        return embed_batches(records, self.backend, self._options, budget)

    def _attributes(self, kind: str, dtype: str, part: Part) -> Attributes:
        card, rows = self.backend.card, kind == "residues"
        return {
            **describe_origin(card, self.backend.computed_with),
            "content": "per-residue" if rows else "per-protein",
            "pooling": "none" if rows else str(self._options.pool),
            "layer": card.encoder.layer(self._options.layer),
            "dtype": dtype,
            "special_tokens_excluded": self._options.pool != "cls" or rows,
            "long_proteins": self._options.long if part.long else "none",
        }
