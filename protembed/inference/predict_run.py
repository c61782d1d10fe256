"""What `protembed predict` computes and writes: all tasks in one pass, as text or HDF5, and pictures of them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from protembed.backends.base import Backend, Predictor
from protembed.errors import UsageError
from protembed.inference.predict import PredictOptions, attach_heads, predict_batches
from protembed.inference.run import Part, Run, RunOptions
from protembed.models.cost import DATASET_BYTES
from protembed.models.head_config import HeadCard
from protembed.outputs.hdf5 import Attributes, HDF5Form, describe_origin
from protembed.outputs.output_file import OutputFile
from protembed.outputs.plots import Track, draw_contacts, draw_tracks, file_name, make_folder, require_matplotlib
from protembed.outputs.stream import StreamWriter
from protembed.outputs.target import is_stream, name_shard
from protembed.outputs.text import TEXT_FORMATS, Format, TextForm, choose_format
from protembed.sequences.files import AnyPath
from protembed.sequences.records import Record
from protembed.sequences.survey import id_key
from protembed.sequences.windows import Failure
from protembed.tasks.prediction import Predicted, Prediction

STANDARD_OUTPUT = Path("-")


@dataclass(frozen=True, kw_only=True)
class PredictionOutput:
    """What is predicted and where it goes; `plots` is a folder of pictures."""

    tasks: tuple[str, ...]
    out: Path = STANDARD_OUTPUT
    format: Format | None = None
    plots: Path | None = None


def predict_run(
    paths: Sequence[AnyPath],
    backend: Backend,
    options: PredictOptions,
    output: PredictionOutput,
    run: RunOptions | None = None,
) -> Run[Predicted]:
    """Prepare a run of `predict`; see Run. It finds the heads, and touches nothing.

    Raises UsageError for an unknown task or an output that makes no sense, ModelError for a head of another encoder.
    """
    run = run or RunOptions()
    predictor, heads = attach_heads(backend, output.tasks)
    form = choose_format(output.format, output.out, heads)
    if output.plots is not None:
        require_matplotlib()
        if all(head.kind.startswith("sequence_") for head in heads):
            raise UsageError("--plot has nothing to draw: no task is about residues")
    work = _PredictWork(predictor, heads, options, output, form)
    if is_stream(output.out):
        text = TEXT_FORMATS[form]
        return Run(paths, work, run, partial(StreamWriter, output.out, text.write, text.header))
    work.outputs = [name_shard(path, run.shard) for path in work.outputs]
    return Run(paths, work, run)


class _PredictWork:
    """See run.Work. As HDF5 there is a file for each task, because other tools expect one kind per file."""

    def __init__(
        self,
        backend: Predictor,
        heads: Sequence[HeadCard],
        options: PredictOptions,
        output: PredictionOutput,
        form: Format,
    ) -> None:
        self.backend, self.cutting, self.max_tokens = backend, options.cutting, options.max_tokens
        self.title = ", ".join(head.task for head in heads)
        self.outputs = [output.out]
        if form == "h5" and len(heads) > 1:
            self.outputs = [_name_task(output.out, head) for head in heads]
        self._predictor, self._heads, self._options, self._output, self._form = backend, heads, options, output, form

    @property
    def content(self) -> dict[str, Any]:
        heads = [{"task": head.task, "head_sha256": head.sha256} for head in self._heads]
        return {
            "long": self._options.long,
            "max_length": self._options.max_length,
            "heads": heads,
            "format": self._form,
        }

    def files(self, part: Part) -> list[OutputFile]:
        if self._form != "h5":
            form = TextForm(text=TEXT_FORMATS[self._form], attributes=self._attributes(self._heads))
            size = sum(self._size(head, part) for head in self._heads)
            return [OutputFile(path=self.outputs[0], form=form, size=size)]
        described = []
        for path, head in zip(self.outputs, self._heads, strict=True):
            dtype = "float16" if head.kind == "contacts" else "float32"
            attributes = {**self._attributes([head]), "special_tokens_excluded": True}
            hdf5 = HDF5Form(kind=head.task, dtype=dtype, attributes=attributes)
            described.append(OutputFile(path=path, form=hdf5, size=self._size(head, part)))
        return described

    def compute(self, records: Iterable[Record], budget: int) -> Iterator[list[Predicted | Failure]]:
        """Predict in batches, and draw."""
        plots = self._output.plots
        if plots is not None:
            make_folder(plots)
        for batch in predict_batches(records, self._predictor, self._heads, self._options, budget):
            for item in batch:
                if plots is not None and isinstance(item, Predicted):
                    draw(item, plots, item.record.key)
            yield batch

    def _size(self, head: HeadCard, part: Part) -> int:
        """Guess the bytes that a task takes."""
        if self._form == "h5":
            squares = int((part.lengths.astype(np.int64) ** 2).sum())
            values = part.residues if head.config.per_residue else len(part.lengths)
            size = 2 * squares if head.kind == "contacts" else 4 * values * max(1, len(head.labels))
            return size + len(part.lengths) * DATASET_BYTES
        return 30 * part.residues if head.config.per_residue or head.kind == "contacts" else 60 * len(part.lengths)

    def _attributes(self, heads: Sequence[HeadCard]) -> Attributes:
        """Describe heads; what there are several of, by commas."""
        return {
            **describe_origin(self.backend.card, self.backend.computed_with),
            "content": ",".join(head.kind for head in heads),
            "task": ",".join(head.task for head in heads),
            "labels": ",".join("\t".join(head.labels) for head in heads),
            "head_sha256": ",".join(head.sha256 for head in heads),
            "temperature": ",".join(str(head.temperature) for head in heads),
        }


def _name_task(out: Path, head: HeadCard) -> Path:
    """Name the file of one of several tasks: OUT.TASK.h5."""
    return out.with_name(f"{out.stem}.{id_key(head.task)}{out.suffix}")


def draw(predicted: Predicted, folder: Path, key: str) -> None:
    """Draw what there is to draw of a protein: the tracks of its residues, and its contact map."""
    tracks = []
    for task, prediction in predicted.tasks.items():
        if prediction.card.kind == "contacts":
            draw_contacts(prediction.output, folder / file_name(f"{key}.{task}"), title=predicted.record.id)
        elif prediction.card.config.per_residue:
            tracks.append(_track(task, prediction))
    if tracks:
        draw_tracks(tracks, folder / file_name(key), title=predicted.record.id)


def _track(task: str, prediction: Prediction) -> Track:
    if prediction.card.kind == "residue_values":
        return Track(name=task, values=prediction.values)
    # A letter that is no label stands for no flag.
    classes = (*prediction.card.labels, *sorted(set(prediction.labels) - set(prediction.card.labels)))
    return Track(name=task, values=np.array([classes.index(x) for x in prediction.labels]), classes=classes)
