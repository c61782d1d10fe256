"""The pretraining loop: from a configuration to a native checkpoint, a metrics file and a stream of reports."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from protembed import checkpoint
from protembed.alphabet import PROTEMBED
from protembed.batching import TokenBatch
from protembed.card import EncoderConfig, MlmHeadConfig, ModelCard
from protembed.errors import TrainingError
from protembed.layout import Packed
from protembed.model import ProteinModel
from protembed.train.checkpoints import Progress, list_checkpoints, restore, save_checkpoint
from protembed.train.config import ModelSection, PretrainConfig
from protembed.train.data import Cursor, Packing, TokenStore, prepare
from protembed.train.evaluation import perplexity, protein_losses
from protembed.train.masking import mask_tokens
from protembed.train.optimizer import build_optimizers, learning_rate


@dataclass(frozen=True, kw_only=True)
class Report:
    """What happened up to a step; `valid_perplexity` only where the model was evaluated."""

    step: int
    steps: int
    tokens: int
    epoch: float
    seconds: float
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float
    valid_perplexity: float | None = None

    def __str__(self) -> str:
        valid = "" if self.valid_perplexity is None else f", valid perplexity {self.valid_perplexity:.2f}"
        return f"step {self.step:,}: loss {self.loss:.3f}{valid}, {self.tokens_per_second:,.0f} tokens/s"


def make_card(section: ModelSection) -> ModelCard:
    """Describe the model that a configuration asks for."""
    shape = {key: value for key, value in asdict(section).items() if key != "name"}
    encoder = EncoderConfig(vocab_size=len(PROTEMBED), mask_id=PROTEMBED.mask_id, **shape)
    return ModelCard(
        name=section.name,
        encoder=encoder,
        alphabet=PROTEMBED,
        mlm_head=MlmHeadConfig(),
        license="Apache-2.0",
        source="trained by protembed pretrain",
    )


class Trainer:
    """One pretraining run in one process.

    The run lives in the folder `[train] out`: checkpoints, `metrics.jsonl`, and at the end `model.safetensors`.
    A second start goes on from the newest checkpoint.
    """

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        section = config.train
        if section.threads:
            torch.set_num_threads(section.threads)
        name = ("cuda" if torch.cuda.is_available() else "cpu") if section.device == "auto" else section.device
        self.device = torch.device(name)
        self.run_folder = Path(section.out)
        self.run_folder.mkdir(parents=True, exist_ok=True)
        self.alphabet = PROTEMBED
        cache = Path(config.data.cache)
        self.store = prepare(config.data.train, cache / "train", self.alphabet)
        self.valid = self._valid_proteins(prepare(config.data.valid, cache / "valid", self.alphabet))
        self.model = ProteinModel(make_card(config.model))
        self.model.initialise(section.seed)
        self.model.to(self.device)
        self.optimizers = build_optimizers(self.model.named_parameters(), section)
        self.progress = Progress()
        if found := list_checkpoints(self.run_folder):
            self.progress = restore(found[-1], self.model, self.optimizers, config.to_dict())

    @property
    def result(self) -> Path:
        """Where the trained model is, when it is."""
        return self.run_folder / "model.safetensors"

    def introduce(self) -> str:
        """Say in a line what is trained on what, and from where on."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return (
            f"{self.config.model.name}: {parameters:,} parameters, {len(self.store):,} proteins, "
            f"step {self.progress.step:,} of {self.config.train.steps:,} on {self.device}"
        )

    def run(self) -> Iterator[Report]:
        """Train to the last step; yield a report every `log_every` steps and at every evaluation.

        Raises TrainingError when the loss is not a number; the newest checkpoint stays what it was.
        """
        section = self.config.train
        packing = Packing(
            store=self.store,
            alphabet=self.alphabet,
            batch_tokens=section.batch_tokens,
            max_residues=self.config.data.max_residues,
            seed=section.seed,
        )
        stream = packing.batches(self.progress.cursor)
        losses: list[float] = []
        mark, marked_tokens = time.perf_counter(), self.progress.tokens
        while self.progress.step < section.steps:
            began = time.perf_counter()
            batches, cursor = self._take(stream)
            rate = learning_rate(self.progress.step, section)
            loss, norm = self._step(batches, rate)
            losses.append(loss)
            done = self.progress.step + 1
            self.progress = Progress(
                step=done,
                tokens=self.progress.tokens + sum(len(batch.tokens) for batch in batches),
                seconds=self.progress.seconds + time.perf_counter() - began,
                cursor=cursor,
            )
            last = done == section.steps
            evaluate = done % section.evaluate_every == 0 or last
            if evaluate or done % section.log_every == 0:
                speed = (self.progress.tokens - marked_tokens) / (time.perf_counter() - mark)
                report = self._report(float(np.mean(losses)), rate, norm, speed)
                yield self._record(replace(report, valid_perplexity=self.evaluate()) if evaluate else report)
                losses = []
                mark, marked_tokens = time.perf_counter(), self.progress.tokens
            if done % section.checkpoint_every == 0 or last:
                self._save()
        checkpoint.save(self.model, self.result)

    def evaluate(self) -> float:
        """Return the masked perplexity on the first proteins of the validation set, one pass each."""
        self.model.eval()
        value = perplexity(protein_losses(self.model, self.valid, passes=1))
        self.model.train()
        return value

    def _valid_proteins(self, store: TokenStore) -> list[npt.NDArray[np.int64]]:
        count = min(len(store), self.config.train.evaluate_proteins)
        if count == 0:
            raise TrainingError("the validation set is empty", hint="Name proteins in [data] valid.")
        longest = self.config.data.max_residues
        return [self.alphabet.surround(store[index][:longest]) for index in range(count)]

    def _take(self, stream: Iterator[tuple[list[npt.NDArray[np.int64]], Cursor]]) -> tuple[list[TokenBatch], Cursor]:
        batches = []
        for _ in range(self.config.train.accumulate):
            proteins, cursor = next(stream)
            batches.append(TokenBatch.of(proteins))
        return batches, cursor

    def _step(self, batches: list[TokenBatch], rate: float) -> tuple[float, float]:
        """Update the weights once; return the mean loss over masked residues and the gradient norm."""
        section = self.config.train
        questions = []
        for number, batch in enumerate(batches):
            rng = np.random.default_rng((section.seed, self.progress.step, number))
            questions.append(mask_tokens(batch.tokens, self.alphabet, self.config.mask, rng))
        total = sum(len(question.places) for question in questions)
        loss_sum = 0.0
        for batch, question in zip(batches, questions, strict=True):
            places, targets = (torch.from_numpy(x).to(self.device) for x in (question.places, question.targets))
            with self._autocast():
                hidden = self.model(
                    torch.from_numpy(question.tokens).to(self.device), Packed(batch.lengths, self.device)
                )
                logits = self.model.logits(hidden[places])  # (M, vocab_size): the head runs on masked places only
            loss = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum") / total
            loss.backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.item()
        norm = self._clip()
        if not (math.isfinite(loss_sum) and math.isfinite(norm)):
            raise TrainingError(
                f"the loss is not a number at step {self.progress.step + 1}",
                hint="Lower [train] learning_rate; starting again goes on from the newest checkpoint.",
            )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        return loss_sum, norm

    def _clip(self) -> float:
        norm: Tensor = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip)
        return norm.item()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.train.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _report(self, loss: float, rate: float, norm: float, speed: float) -> Report:
        return Report(
            step=self.progress.step,
            steps=self.config.train.steps,
            tokens=self.progress.tokens,
            epoch=round(self.progress.cursor.epoch + self.progress.cursor.used / len(self.store), 4),
            seconds=round(self.progress.seconds, 3),
            loss=loss,
            learning_rate=rate,
            gradient_norm=norm,
            tokens_per_second=round(speed, 1),
        )

    def _record(self, report: Report) -> Report:
        with (self.run_folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(asdict(report)) + "\n")
        return report

    def _save(self) -> None:
        section = self.config.train
        save_checkpoint(
            self.run_folder,
            self.model,
            self.optimizers,
            self.progress,
            self.config.to_dict(),
            keep=section.keep_checkpoints,
        )
