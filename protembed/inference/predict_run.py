"""One run of `protembed predict`: survey the input, predict all tasks in one pass, write and draw, sum up."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from protembed.backends.base import Backend
from protembed.errors import InputError, UsageError
from protembed.inference.predict import PredictOptions, attach_heads, predict
from protembed.inference.run import Progress, check_space
from protembed.outputs.hdf5 import Attributes, HDF5Writer, describe_origin
from protembed.outputs.plots import Track, draw_contacts, draw_tracks, file_name, make_folder, require_matplotlib
from protembed.outputs.text import TEXT_FORMATS, Format, TaskTarget, TextSink, choose_format, failures_of
from protembed.sequences.records import Record, read_fasta
from protembed.sequences.survey import UnknownPolicy, assign_distinct_keys, survey
from protembed.sequences.windows import Failure, residue_limit
from protembed.tasks.prediction import Predicted, Prediction


@dataclass(frozen=True, kw_only=True)
class PredictionOutput:
    """What is predicted and where it goes: standard output when `out` is None; `plots` is a folder of pictures."""

    tasks: tuple[str, ...]
    out: Path | None = None
    format: Format | None = None
    plots: Path | None = None
    unknown: UnknownPolicy = "x"
    overwrite: bool = False


class PredictJob:
    """Predicts for FASTA files.

    Making it finds the heads and reads the input once, and touches nothing; `run` computes. Raises UsageError for an
    unknown task, ModelError for a head of another encoder, InputError for two records with one id.
    """

    def __init__(
        self, paths: Sequence[str], backend: Backend, options: PredictOptions, output: PredictionOutput
    ) -> None:
        self._predictor, self._heads = attach_heads(backend, output.tasks)
        self._options, self._output = options, output
        self._format = choose_format(output.format, output.out, self._heads)
        self._read = partial(read_fasta, paths)
        if output.plots is not None:
            require_matplotlib()
            if all(head.kind.startswith("sequence_") for head in self._heads):
                raise UsageError("--plot has nothing to draw: no task is about residues")
        self.survey = survey(self._read, alphabet=backend.card.alphabet, unknown=output.unknown, key="id")
        if self.survey.repeated:
            deque(self._named(), maxlen=0)
        limit = residue_limit(backend.card.max_residues, options.max_length)
        if options.long == "error" and limit is not None and self.survey.lengths.max() > limit:
            raise InputError(
                f"a protein has {self.survey.lengths.max()} residues, more than {limit}",
                hint="--long split (windows, averaged) or skip.",
            )
        self.failed = 0

    @property
    def residues(self) -> int:
        """Residues of the input."""
        return self.survey.residues

    def summary(self) -> list[str]:
        """Say what was done, and whatever was not plain about the input."""
        out = self._output.out or "standard output"
        tasks = ", ".join(head.task for head in self._heads)
        lines = [f"{self.survey.records:,} records, {self.residues:,} residues: {tasks} -> {out}"]
        listed = f"listed in {failures_of(self._output.out)}" if self._output.out else "named above"
        noted = {
            f"letters outside the alphabet, read as {self._predictor.card.alphabet.unknown}": self.survey.unknown,
            "gaps removed": self.survey.gaps,
            f"records without a result, {listed}": self.failed,
        }
        return lines + [f"{count:,} {what}" for what, count in noted.items() if count]

    def run(self) -> Iterator[Progress]:
        """Predict and write everything; yield after every protein. `failed` then counts records without a result."""
        if self._output.out is not None:
            check_space(self._output.out.parent, self._needed(), hint="Choose another folder, or split the input.")
        if self._output.plots is not None:
            make_folder(self._output.plots)
        yield from self._run_hdf5() if self._format == "h5" else self._run_text()

    def _run_text(self) -> Iterator[Progress]:
        form = TEXT_FORMATS[self._format]
        with ExitStack() as stack:
            sink: TextSink = stack.enter_context(TextSink(self._output.out, overwrite=self._output.overwrite))
            sink.write(form.header)
            for progress, _, item in self._results():
                if isinstance(item, Failure):
                    sink.fail(item)
                    self.failed += 1
                else:
                    for line in form.write(item):
                        sink.write(line)
                yield progress
            sink.finish()

    def _run_hdf5(self) -> Iterator[Progress]:
        assert self._output.out is not None
        tasks = tuple(head.task for head in self._heads)
        attributes = {head.task: self._attributes(head.task) for head in self._heads}
        writer = HDF5Writer(
            TaskTarget(out=self._output.out, tasks=tasks),
            attributes,
            fingerprint={"input": self.survey.digest, "attributes": {task: dict(a) for task, a in attributes.items()}},
            store_dtypes={head.task: "float16" if head.kind == "contacts" else "float32" for head in self._heads},
            overwrite=self._output.overwrite,
            resumable=False,
        )
        with writer:
            for position, (progress, key, item) in enumerate(self._results(), start=1):
                writer.add(key, item)
                writer.batch_done(position)
                yield progress
            self.failed = writer.finish()

    def _results(self) -> Iterator[tuple[Progress, str, Predicted | Failure]]:
        """Predict record by record, and draw; yield how far it is, the key, the result."""
        under_way: deque[str] = deque()

        def records() -> Iterator[Record]:
            for key, record in self._named():
                under_way.append(key)
                yield record

        residues = 0
        items = predict(records(), self._predictor, self._heads, self._options)
        for number, item in enumerate(items, start=1):
            key = under_way.popleft()
            if self._output.plots is not None and isinstance(item, Predicted):
                draw(item, self._output.plots, key)
            residues += len(item.record.sequence)
            yield Progress(records=number, residues=residues), key, item

    def _named(self) -> Iterator[tuple[str, Record]]:
        return assign_distinct_keys(self._read(), self.survey, kind="id")

    def _needed(self) -> int:
        """Guess the bytes of the output."""
        squares = int((self.survey.lengths.astype(np.int64) ** 2).sum())
        size = {"contacts": 2 * squares if self._format == "h5" else 30 * self.residues}
        return sum(size.get(head.kind, 8 * self.residues * max(1, len(head.labels) // 2)) for head in self._heads)

    def _attributes(self, task: str) -> Attributes:
        head = next(head for head in self._heads if head.task == task)
        return {
            **describe_origin(self._predictor.card, self._predictor.computed_with),
            "content": head.kind,
            "task": task,
            "labels": "\t".join(head.labels),
            "head_sha256": head.sha256,
            "temperature": str(head.temperature),
            "special_tokens_excluded": True,
        }


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
