"""Training of one task head: from a configuration to a head's file, a metrics file and a stream of reports."""

import math
import shlex
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from protembed.backends.load import ModelOptions, open_model
from protembed.backends.torch_backend import TorchBackend
from protembed.checkpoints.head_files import round_weights, save_head
from protembed.errors import OutputError, TrainingError
from protembed.models.config import DEFAULT_MODEL
from protembed.models.head_config import HeadCard
from protembed.models.heads.registry import make_head
from protembed.outputs.files import lock
from protembed.tasks.labels.encoding import Labelled
from protembed.training.finetune.config import TaskConfig, make_task
from protembed.training.finetune.examples import Batch, Examples, lay_out
from protembed.training.finetune.features import Inputs, cached, residues_alone, running
from protembed.training.finetune.lora import adapt, save_encoder, settle
from protembed.training.finetune.report import EpochReport
from protembed.training.finetune.scoring import (
    Answers,
    calibrate,
    chosen_metric,
    collect,
    residues_of,
    score,
)
from protembed.training.finetune.setup import class_weights, describe, design, standardise, value_scale
from protembed.training.finetune.splits import read_splits
from protembed.training.finetune.weights import LOWER, Weights
from protembed.training.signals import Interruption


class HeadTrainer:
    """Trains one head. The run lives in the folder `[train] out`: `metrics.jsonl`, `head.safetensors` at the end.

    An encoder that is trained with it is written beside it, `encoder.safetensors`, and the head belongs to that.
    """

    def __init__(self, config: TaskConfig) -> None:
        self.config, section = config, config.train
        self.run_folder = Path(section.out)
        self._require_room()
        if self.run_folder.parent.is_dir():
            with lock(self.run_folder, what="run folder"):
                pass  # refused at once, not after the data was read
        if section.threads:
            torch.set_num_threads(section.threads)
        self.task = make_task(config.task)
        self.metric = chosen_metric(self.task, section.metric)
        self.splits = read_splits(config, self.task)
        # The encoder is trained in float32; a frozen one may compute as it likes.
        dtype = section.precision if config.frozen and config.head.reads != "residue" else "float32"
        self.model = open_model(ModelOptions(model=config.encoder.model, device=section.device, dtype=dtype))
        self.device = self.model.encoder.embedding.weight.device
        train, valid = (self._lay_out(proteins) for proteins in (self.splits.train, self.splits.valid))
        self.scale, self.offset = value_scale(train)
        self.train, self.valid = (standardise(part, self.scale, self.offset) for part in (train, valid))
        torch.manual_seed(section.seed)
        shape = design(config, self.task, self.model.card, len(self.splits.labels))
        self.head = make_head(shape).to(self.device)
        self.weights = class_weights(self.train, len(self.splits.labels), section.class_weights, self.device)
        if not config.frozen:
            adapt(self.model, config.encoder, self.head.config)
        steps = section.epochs * self.train.count_batches(section.batch_tokens)
        self.trained = Weights(self.head, self.model, section, steps)
        self.results: dict[str, float] = {}
        self._best_epoch, self._best_value = 0, math.nan
        self._answered: Answers | None = None

    @property
    def result(self) -> Path:
        """Where the trained head is, when it is."""
        return self.run_folder / "head.safetensors"

    def introduce(self) -> list[str]:
        """Say what is trained on what."""
        lines = [
            f"{self.task.name} on {self.model.card.name} ({self.config.encoder.mode}): {len(self.trained):,} weights, "
            f"{len(self.splits.train):,} proteins to train, {len(self.splits.valid):,} to validate, {self.device}",
            *self.splits.notes,
        ]
        if (labels := self.splits.labels) and not self.task.coding.labels:
            shown = ", ".join(labels[:12]) + (", ..." if len(labels) > 12 else "")
            lines.append(f"{len(labels):,} classes in the data: {shown}")
        if long := self.train.long + self.valid.long:
            lines.append(f"{long:,} proteins of more than {self.config.data.max_residues} residues were cut")
        if self.config.frozen and self.head.config.reads == "hidden":
            size = 2 * self.head.config.d_input * (len(self.train.tokens) + len(self.valid.tokens))
            lines.append(f"hidden states: {size / 1e9:.2f} GB in {self._cache}, computed where they are not there yet")
        return lines

    def usage(self) -> str:
        """Return how a shell names the head, and its encoder where that is not the bundled one."""
        model = self.config.encoder.model if self.config.frozen else str(self.run_folder / "encoder.safetensors")
        words = ["--task", str(self.result)] if model == DEFAULT_MODEL else ["-m", model, "--task", str(self.result)]
        return shlex.join(words)

    def run(self) -> Iterator[EpochReport]:
        """Train until the metric stays behind its best; yield a report an epoch; write the best head.

        Raises TrainingError when the loss, or what the head says, is not a number; OutputError when the run's folder
        cannot be written, or another run is working in it; and KeyboardInterrupt, after the best head so far was
        written, when the run is asked to end (SIGTERM, SIGHUP, SIGUSR1, SIGINT).
        """
        try:
            self.run_folder.parent.mkdir(parents=True, exist_ok=True)
            with lock(self.run_folder, what="run folder"):
                self._require_room()  # another run may have ended since this one began
                yield from self._run()
        except (OSError, SafetensorError) as error:
            place, reason = getattr(error, "filename", None), getattr(error, "strerror", None)
            raise OutputError(
                f"{place or self.run_folder}: cannot be written ({reason or error})",
                hint="Check the folder and its space; [train] out and [data] cache name others.",
            ) from error

    def _run(self) -> Iterator[EpochReport]:
        section = self.config.train
        self.run_folder.mkdir(parents=True, exist_ok=True)
        (self.run_folder / "metrics.jsonl").write_text("")
        inputs = self._inputs(self.train), self._inputs(self.valid)
        with Interruption() as interruption:
            for epoch in range(1, section.epochs + 1):
                report = self._epoch(epoch, *inputs, interruption)
                if report is None:
                    break
                report.append_to(self.run_folder / "metrics.jsonl")
                yield report
                if interruption.asked or epoch - self._best_epoch >= section.patience:
                    break
            self._finish(inputs[1], hurried=interruption.asked)
            if interruption.asked:
                raise KeyboardInterrupt

    def _epoch(self, epoch: int, train: Inputs, valid: Inputs, interruption: Interruption) -> EpochReport | None:
        """Train for an epoch and measure; None when the run is to end, and an earlier epoch was measured."""
        began, losses = time.perf_counter(), []
        rng = np.random.default_rng((self.config.train.seed, epoch))
        self.head.train()
        for batch in self.train.batches(self.config.train.batch_tokens, self.device, rng):
            if batch.counted:
                with self._arithmetic():
                    outputs = self._outputs(batch, train)
                loss = self.head.loss(outputs, batch.targets, batch.counts, self.weights)
                losses.append(self.trained.update(loss))
            if interruption.asked:
                break
        if interruption.asked and self._answered:
            return None
        answers = self._answers(self.valid, valid)
        value = self._measure(answers)[self.metric]
        best = value > self._best_value or math.isnan(self._best_value)
        if best:
            self._best_epoch, self._best_value, self._answered = epoch, value, answers
            self.trained.remember()
        return EpochReport(
            epoch=epoch,
            epochs=self.config.train.epochs,
            steps=self.trained.step,
            loss=float(np.mean(losses)),
            metric=self.metric,
            value=value,
            best=best,
            learning_rate=self.trained.learning_rate,
            seconds=round(time.perf_counter() - began, 3),
        )

    def _outputs(self, batch: Batch, inputs: Inputs) -> Tensor | list[Tensor]:
        outputs: Tensor | list[Tensor] = self.head(inputs(batch), batch.layout)
        if isinstance(outputs, Tensor):
            return outputs
        return residues_of(outputs, self.model.card.alphabet, self.head.config.reads)

    @torch.no_grad()
    def _answers(self, examples: Examples, inputs: Inputs) -> Answers:
        self.head.eval()
        batches = examples.batches(self.config.train.batch_tokens, self.device)
        # A head alone is measured in what it will be used in.
        with nullcontext() if self.config.frozen else self._arithmetic():
            found = collect(self.task.kind, ((batch, self._outputs(batch, inputs)) for batch in batches))
        if not np.isfinite(found.outputs).all():
            raise TrainingError("what the head says is not a number", hint=LOWER)
        return found

    def _measure(self, answers: Answers) -> dict[str, float]:
        return score(self.task, answers, scale=self.scale, offset=self.offset)

    def _finish(self, valid: Inputs, *, hurried: bool) -> None:
        """Go back to the best weights, calibrate, measure the test splits (unless hurried), and write it all."""
        self.trained.go_back()
        stored, encoder = getattr(torch, self.config.head.store_dtype), self.model.card
        round_weights(self.head, stored)  # what is measured is what is written
        if not self.config.frozen:
            section = self.config.encoder
            place, dtype = self.run_folder / "encoder.safetensors", getattr(torch, section.store_dtype)
            settle(self.model, dtype)
            encoder = save_encoder(self.model, self.task.name, section.mode, place, dtype)
        answers = self._answered if hurried and self._answered else self._answers(self.valid, valid)
        results: dict[str, float | int] = {"epoch": self._best_epoch}
        results |= {f"valid_{name}": value for name, value in self._measure(answers).items()}
        temperature, errors = calibrate(self.task.kind, answers)
        results |= errors
        for name, proteins in ({} if hurried else self.splits.test).items():
            examples = standardise(self._lay_out(proteins), self.scale, self.offset)
            found = self._measure(self._answers(examples, self._inputs(examples)))
            results |= {f"{name}_{metric}": value for metric, value in found.items()}
        self.results = {name: round(value, 5) for name, value in results.items() if math.isfinite(value)}
        card = HeadCard(
            task=self.task.name,
            config=self.head.config,
            encoder=encoder.name,
            encoder_sha256=encoder.sha256,
            labels=self.splits.labels,
            temperature=temperature,
            scale=self.scale,
            offset=self.offset,
            training=describe(self.config, self.splits.train, self.results, shared=self.splits.shared),
            license=self.config.head.license,
        )
        save_head(self.head, card, self.result, dtype=stored)

    def _inputs(self, examples: Examples) -> Inputs:
        shape = self.head.config
        if shape.reads == "residue":
            return residues_alone(shape)
        if not self.config.frozen or shape.reads == "attention":
            return running(self.model, shape)
        return cached(TorchBackend(self.model), shape, examples, self._cache, self.device)

    @property
    def _cache(self) -> Path:
        return Path(self.config.data.cache or self.run_folder / "features")

    def _lay_out(self, proteins: list[Labelled]) -> Examples:
        data, limit = self.config.data, self.model.card.max_residues
        longest = min(data.max_residues, limit or data.max_residues)
        return lay_out(proteins, self.task.kind, self.model.card.alphabet, longest=longest, cut=data.long == "cut")

    def _arithmetic(self) -> AbstractContextManager[object]:
        if self.config.train.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _require_room(self) -> None:
        if self.result.exists() and not self.config.train.overwrite:
            raise OutputError(
                f"{self.result} exists already",
                hint="--set train.overwrite=true, or another folder: --set train.out=...",
            )
