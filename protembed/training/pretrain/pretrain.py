"""The pretraining loop: from a configuration to a native checkpoint, a metrics file and a stream of reports."""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from protembed.checkpoints import native as checkpoint
from protembed.errors import OutOfMemoryError, TrainingError
from protembed.models.protein_model import skeleton
from protembed.outputs.files import lock
from protembed.training.checkpoints import (
    Checkpoints,
    Progress,
    changed_settings,
    read_optimizers,
    read_progress,
    written,
)
from protembed.training.corpus.packing import Packing
from protembed.training.log import Report, RunLog
from protembed.training.optimizer import build_optimizers, learning_rate
from protembed.training.parallel import World, clip, full_weights, parallelise, without_sync
from protembed.training.pretrain.batches import Batch, Shape
from protembed.training.pretrain.config import PretrainConfig
from protembed.training.pretrain.forecast import training_flops_per_token
from protembed.training.pretrain.meter import RunMeter
from protembed.training.pretrain.objective import MaskedResidues, Step, Steps, ahead
from protembed.training.pretrain.perplexity import exponential, score_proteins
from protembed.training.pretrain.start import (
    choose_valid,
    find_checkpoint,
    find_corpus,
    first_weights,
    pseudocounts,
    require_schedule,
)
from protembed.training.signals import Interruption, Stopped


class Trainer:
    """One process of a pretraining run.

    The run lives in the folder `[train] out`: checkpoints, `metrics.jsonl`, and at the end `model.safetensors`.
    A second start goes on from the newest checkpoint, with the same number of processes or another one.
    """

    def __init__(self, config: PretrainConfig, world: World) -> None:
        self.config, self.world = config, world
        section = config.train
        if section.threads:
            torch.set_num_threads(section.threads)
        self.run_folder = Path(section.out)
        with written(self.run_folder):
            self.run_folder.mkdir(parents=True, exist_ok=True)
        self.card = config.card
        corpus = find_corpus(config.data, self.card.alphabet, world)
        self.store = corpus.train
        background = pseudocounts(corpus, config.objective)
        self.valid = choose_valid(corpus.valid, self.card.alphabet, config, background)
        self.state = {**config.to_dict(), "corpus": [len(self.store), self.store.residues]}
        newest = find_checkpoint(self.run_folder, world)
        self.progress = read_progress(newest, self.state) if newest else Progress()
        self.changes: list[str] = []
        if newest:
            require_schedule(newest, section, self.progress.step)
            self.changes = changed_settings(newest, self.state)
        self.module = MaskedResidues(skeleton(self.card))
        weights = first_weights(self.card, section, newest) if world.is_main else {}
        self.trained = parallelise(self.module, config.parallel, world, weights, precision=section.precision)
        self.optimizers = build_optimizers(self.module.named_parameters(), section)
        if newest:
            read_optimizers(newest, self.module, self.optimizers, world)
        self.checkpoints = Checkpoints(self.run_folder, world, keep=section.keep_checkpoints)
        self.steps = self._steps(background)

    @property
    def result(self) -> Path:
        """Where the trained model is, when it is."""
        return self.run_folder / "model.safetensors"

    def introduce(self) -> str:
        """Say in a line what is trained on what, and from where on."""
        parameters = sum(parameter.numel() for parameter in skeleton(self.card).parameters())
        return (
            f"{self.card.name}: {parameters:,} parameters, {len(self.store):,} proteins, "
            f"step {self.progress.step:,} of {self.config.train.steps:,} on {self.world.size} x {self.world.device}"
            + (f"; from here on {', '.join(self.changes)}" if self.changes else "")
        )

    def run(self) -> Iterator[Report]:
        """Train to the last step; yield a report every `log_every` steps and at every evaluation.

        Raises TrainingError when the loss is not a number, WorkerLostError when another process is gone, OutputError
        when the run's folder cannot be written, and Stopped, a KeyboardInterrupt, after saving, when the run is asked
        to end (SIGTERM, SIGHUP, SIGUSR1, SIGINT).
        """
        with Interruption() as interruption:
            yield from self._train(interruption)
            # Asked to end from here on, a run does what little is left.
            self.checkpoints.finish()
            weights = full_weights(self.module.model)
            if self.world.is_main:
                with written(self.result):
                    checkpoint.save_weights(self.card, weights, self.result)

    def evaluate(self) -> float:
        """Return the masked perplexity on the first proteins of the validation set, one pass each."""
        return self._evaluate()[0]

    def _evaluate(self) -> tuple[float, float | None]:
        """Return the masked perplexity, and the cross entropy of profiles where they are predicted."""
        self.module.eval()
        # FSDP ranks must run the same forwards; DDP ranks split the set.
        divided = self.config.parallel.strategy == "ddp"
        numbers = range(self.world.rank if divided else 0, len(self.valid.proteins), self.world.size if divided else 1)
        # Eager, because every batch has a new shape and would recompile.
        eager = torch.compiler.set_stance("force_eager") if self.config.parallel.compile else nullcontext()
        with eager, self.world.watch():
            scores = score_proteins(
                self.module,
                self.card.alphabet,
                self.valid.proteins,
                self.world.device,
                passes=1,
                profiles=self.valid.profiles,
                numbers=numbers,
            )
            scored = list(scores)
        self.module.train()
        names = ("loss", "count", "profile_loss", "profiled")
        loss, count, profile_loss, profiled = self.world.sum(
            *(sum(getattr(item, name) for item in scored) for name in names)
        )
        return exponential(loss / count), profile_loss / profiled if profiled else None

    def flops_per_token(self) -> float:
        """Return the operations that a token of this corpus takes; see `forecast.training_flops_per_token`."""
        specials = self.card.alphabet.prefix + self.card.alphabet.suffix
        lengths = np.minimum(self.store.lengths, self.config.data.max_residues).astype(np.float64) + specials
        return training_flops_per_token(
            self.card.encoder,
            self.card.mlm_head,
            mask_rate=self.config.mask.rate,
            mean_squares_over_mean=float((lengths**2).sum() / lengths.sum()),
            profile=self.card.profile_head,
        )

    def _train(self, interruption: Interruption) -> Iterator[Report]:
        with closing(ahead(self.steps.after(self.progress.cursor, self.progress.step))) as stream:
            yield from self._train_on(stream, interruption)

    def _train_on(self, stream: Iterator[Step], interruption: Interruption) -> Iterator[Report]:
        section = self.config.train
        log = (
            RunLog(self.run_folder, self.progress.step, tensorboard=section.tensorboard) if self.world.is_main else None
        )
        meter = RunMeter(self.config, self.world, self.flops_per_token(), self.steps.packing.epoch_size)
        meter.warn(f"changed: {', '.join(self.changes)}" if self.changes else "")
        while self.progress.step < section.steps:
            began = time.perf_counter()
            step = next(stream)
            waited = time.perf_counter() - began
            rate = learning_rate(self.progress.step, section)
            losses, norm, stop = self._update(step, rate, interruption.asked)
            done = self.progress.step + 1
            self.progress = Progress(
                step=done,
                tokens=self.progress.tokens + step.tokens,
                seconds=self.progress.seconds + time.perf_counter() - began,
                cursor=step.cursor,
            )
            meter.see(losses[0], norm, step.tokens, waited, losses[1] if self.card.profile_head else None)
            last = done == section.steps
            evaluate = done % section.evaluate_every == 0 or last
            if evaluate or done % section.log_every == 0:
                report = meter.report(self.progress, rate)
                if evaluate:
                    perplexity, profile = self._evaluate()
                    report = replace(report, valid_perplexity=perplexity, valid_profile=profile)
                if log is not None:
                    log.write(report)
                yield report
                meter.restart()
            if done % section.checkpoint_every == 0 or last or stop:
                self.checkpoints.save(self.card, self.module, self.optimizers, self.progress, self.state)
            self.checkpoints.poll()
            if stop and not last:
                self.checkpoints.finish()
                raise Stopped

    def _update(self, step: Step, rate: float, asked: bool) -> tuple[tuple[float, float], float, bool]:
        """Update the weights once; return the mean losses, the gradient norm, and whether to stop.

        The losses are those of masked residues and of profiles, the latter 0 where none are predicted.
        """
        masked, profiled, stop = self.world.sum(
            sum(batch.count for batch in step.batches), sum(batch.profiled for batch in step.batches), asked
        )
        losses = []
        with self.world.watch(), _memory_reported(self.config.train.batch_tokens):
            for number, batch in enumerate(step.batches, start=1):
                with without_sync(self.trained, number < len(step.batches)):
                    loss, parts = self._loss(batch, max(masked, 1), max(profiled, 1))
                    (loss * self.world.size).backward()  # type: ignore[no-untyped-call]  # gradients are averaged
                losses.append(parts)
            norm_on_device = clip(self.module, self.config.train.clip)
            # The one place of a step where the host waits for the device.
            *sums, norm = torch.cat((torch.stack(losses).sum(dim=0), norm_on_device.view(1))).tolist()
        means = self.world.sum(*sums)
        if not (all(map(math.isfinite, means)) and math.isfinite(norm)):
            self._give_up(step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        return (means[0], means[1]), norm, stop > 0

    def _loss(self, batch: Batch, masked: float, profiled: float) -> tuple[Tensor, Tensor]:
        """Return what a batch adds to the loss of its step, and to the means of masked residues and of profiles (2,).

        `masked` and `profiled` are how many residues the step has of each, on all processes.
        """
        device, weights = self.world.device, self.config.objective
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.train.precision == "bfloat16"):
            losses: Tensor = self.trained(*batch.on(device))
        places = len(batch.question.places)
        parts = torch.stack((losses[:places].sum() / masked, losses[places:].sum() / profiled))
        loss = weights.masked * parts[0]
        if batch.profile is not None:
            loss = loss + weights.profile * parts[1]
        return loss, parts.detach()

    def _give_up(self, step: Step) -> NoReturn:
        """Save what every process was computing, and raise TrainingError."""
        folder = self.run_folder / f"not_a_number_step_{self.progress.step + 1:08d}"
        with written(folder):
            folder.mkdir(exist_ok=True)
            for number, batch in enumerate(step.batches):
                arrays = {**asdict(batch.question), "lengths": batch.lengths}
                np.savez(folder / f"process_{self.world.rank}_batch_{number}.npz", **arrays)
        raise TrainingError(
            f"the loss is not a number at step {self.progress.step + 1}; its batches are in {folder}",
            hint="Lower [train] learning_rate; starting again goes on from the newest checkpoint.",
        )

    def _steps(self, background: npt.NDArray[np.float32] | None) -> Steps:
        section, data = self.config.train, self.config.data
        alphabet = self.card.alphabet
        packing = Packing(
            store=self.store,
            alphabet=alphabet,
            batch_tokens=section.batch_tokens,
            max_residues=data.max_residues,
            seed=section.seed,
            sampling=data.sampling,
        )
        shape = Shape(
            tokens=section.batch_tokens,
            places=max(1, round(self.config.mask.rate * section.batch_tokens)),
            longest=data.max_residues + alphabet.prefix + alphabet.suffix,
            pad_id=alphabet.pad_id,
        )
        return Steps(
            packing=packing,
            mask=self.config.mask,
            rank=self.world.rank,
            ranks=self.world.size,
            accumulate=section.accumulate,
            shape=shape if self.config.parallel.compile else None,
            background=background,
        )


@contextmanager
def own(run: Path, world: World) -> Iterator[None]:
    """Be the only run that works in a folder. Raises OutputError, before anything is touched, when another one does."""
    with ExitStack() as held:
        if world.is_main:
            with written(run):
                run.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(lock(run, what="run"))
        yield


@contextmanager
def _memory_reported(batch_tokens: int) -> Iterator[None]:
    """Say what can be done when a batch does not fit into the memory of the GPU."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"{batch_tokens:,} tokens at once do not fit into the memory of the GPU",
            hint="Halve [train] batch_tokens and double accumulate, or --set parallel.activation_checkpointing=true",
        ) from error
