"""Training checkpoints: a folder a step, complete or not there at all, for any number of processes."""

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.optim import Optimizer

from protembed.checkpoints import native as checkpoint
from protembed.errors import OutputError, TrainingError
from protembed.models.config import ModelCard
from protembed.training.corpus.packing import Cursor
from protembed.training.parallel import World, full_weights

_PREFIX = "step_"
_FREE = {("train", name) for name in ("out", "device", "threads", "start_from")}
_MASKED_ALONE = {"masked": 1.0, "profile": 0.0, "background": 1.0}  # what runs had before there was a choice
_BY_NAME = StateDictOptions(flatten_optimizer_state_dict=True)  # so that another number of processes can read it


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is: steps done, tokens seen, seconds spent, and its place in the data."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    cursor: Cursor = field(default_factory=Cursor)


def list_checkpoints(run: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first; a person's copies beside them are none."""
    found = [path for path in run.glob(f"{_PREFIX}*") if re.fullmatch(rf"{_PREFIX}[0-9]+", path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(_PREFIX)))


class Checkpoints:
    """The checkpoints of one run, in `run/step_XXXXXXXX`.

    In each: `model.safetensors`, a native checkpoint that every other command reads; `optimizer/`, written by every
    process in the background (torch.distributed.checkpoint); `progress.json`. A folder is called `.step_X.tmp` until it
    is complete. All but the newest `keep` are deleted.
    """

    def __init__(self, run: Path, world: World, *, keep: int) -> None:
        self._run, self._world, self._keep = run, world, keep
        if world.is_main:
            for left in run.glob(f".{_PREFIX}*.tmp"):  # of a process that was killed while it saved
                shutil.rmtree(left, ignore_errors=True)
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None
        self._pending: tuple[Path, Future[Any]] | None = None

    def save(
        self,
        card: ModelCard,
        module: nn.Module,
        optimizers: Sequence[Optimizer],
        progress: Progress,
        state: Mapping[str, Any],
    ) -> None:
        """Begin a checkpoint; `poll` or `finish` completes it. Every process must call.

        Raises OutputError when it cannot be written, as `poll` and `finish` do.
        """
        self.finish()
        final = self._run / f"{_PREFIX}{progress.step:08d}"
        temporary = self._run / f".{final.name}.tmp"
        with self._world.watch():
            weights = _strip(full_weights(module))
        if self._world.is_main:
            with written(final):
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
                checkpoint.save_weights(card, weights, temporary / "model.safetensors")
                values = {"progress": asdict(progress), "config": state}
                (temporary / "progress.json").write_text(json.dumps(values, indent=1))
        self._world.wait()
        with self._world.watch(), written(final):
            tensors = {"optimizer": get_optimizer_state_dict(module, list(optimizers), options=_BY_NAME)}
            writing = async_save(
                tensors, checkpoint_id=temporary / "optimizer", process_group=self._group, no_dist=self._group is None
            )
        assert isinstance(writing, Future)
        self._pending = final, writing

    def poll(self) -> None:
        """Give what is completely written its name. To be called often; it does not wait."""
        # The main process's part ends last: it writes the index when all others are done.
        if self._pending and self._world.is_main and self._pending[1].done():
            self._settle()

    def finish(self) -> None:
        """Wait for what is being written. Every process must call."""
        if self._pending is not None:
            self._settle()
        self._world.wait()

    def _settle(self) -> None:
        assert self._pending is not None
        final, writing = self._pending
        self._pending = None
        with self._world.watch(), written(final):
            writing.result()
            if self._world.is_main:
                shutil.rmtree(final, ignore_errors=True)
                os.replace(final.with_name(f".{final.name}.tmp"), final)
                for old in list_checkpoints(self._run)[: -self._keep]:
                    shutil.rmtree(old)


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Turn what can go wrong with writing into OutputError."""
    try:
        yield
    except (OSError, SafetensorError, CheckpointException) as error:
        lines = str(getattr(error, "strerror", "") or error).strip().splitlines() or [type(error).__name__]
        raise OutputError(
            f"{path}: cannot be written ({lines[-1]})",
            hint="Check the folder and its space; started again, the run goes on from its newest checkpoint.",
        ) from error


def read_progress(folder: Path, state: Mapping[str, Any]) -> Progress:
    """Return how far a checkpoint is; `state` is what `save` is given as such.

    Raises TrainingError when it is damaged, past the last step, or belongs to another model, other data, another seed
    (which is the order of the data) or another optimizer. Where the data lies may change, what it holds may not.
    """
    saved = _read_saved(folder)
    try:
        progress = _progress_of(saved["progress"])
        was = _identity({"corpus": state["corpus"], "objective": _MASKED_ALONE, **saved["config"]})
        if folder.name != f"{_PREFIX}{progress.step:08d}":
            raise ValueError(f"it is of step {progress.step}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, "progress.json", error) from error
    for place, value in _identity(json.loads(json.dumps(state))).items():
        if value != was[place]:
            raise TrainingError(
                f"{folder}: was trained with another {place} than the configuration says",
                hint="Give the run another folder ([train] out), or go back to the old configuration.",
            )
    if progress.step > state["train"]["steps"]:
        raise TrainingError(
            f"{folder}: is past [train] steps, {state['train']['steps']:,}",
            hint="Give more steps, or the run another folder ([train] out).",
        )
    return progress


def _read_saved(folder: Path) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(folder, "progress.json", error) from error
    if not isinstance(saved, dict):
        raise _damaged(folder, "progress.json", ValueError("it holds no progress"))
    return saved


def _progress_of(values: Mapping[str, Any]) -> Progress:
    """Return what JSON says of how far a run is. Raises ValueError, KeyError or TypeError for nonsense."""
    counts = (values["step"], values["tokens"], values["cursor"]["epoch"], values["cursor"]["used"])
    if not all(type(count) is int and 0 <= count < 2**63 for count in counts):
        raise ValueError("a count is none")
    seconds = values["seconds"]
    if type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
        raise ValueError(f"seconds are {str(seconds)[:20]}")
    step, tokens, epoch, used = counts
    return Progress(step=step, tokens=tokens, seconds=float(seconds), cursor=Cursor(epoch, used))


def read_config(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the sections that a checkpoint was made with. Raises TrainingError when it is damaged."""
    config = _read_saved(folder).get("config")
    if not isinstance(config, dict):
        raise _damaged(folder, "progress.json", ValueError("it holds no configuration"))
    return {name: section for name, section in config.items() if isinstance(section, dict)}


def changed_settings(folder: Path, state: Mapping[str, Any]) -> list[str]:
    """Say which settings of [train] and [parallel] differ from those that a checkpoint was made with."""
    before, now = read_config(folder), json.loads(json.dumps(state))
    return [
        f"[{section}] {name} {before[section][name]} -> {value}"
        for section in ("train", "parallel")
        for name, value in now[section].items()
        if name in before.get(section, {}) and before[section][name] != value and (section, name) not in _FREE
    ]


def _identity(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must not change in a run, by the place that tells it."""
    paths = ("corpus", "train", "valid", "homologs")
    return {
        "[model]": state["model"],
        "[data]": {name: value for name, value in state["data"].items() if name not in paths},
        "[data] corpus": state["corpus"],
        "[mask]": state["mask"],
        "[objective]": state.get("objective"),
        **{f"[train] {name}": state["train"][name] for name in ("optimizer", "seed")},
    }


def read_optimizers(folder: Path, module: nn.Module, optimizers: Sequence[Optimizer], world: World) -> None:
    """Put the state of a checkpoint into optimizers, whatever number of processes wrote it.

    Learning rate, weight decay, betas and the like stay what the optimizers were built with, not what the checkpoint
    says. Raises TrainingError when it is damaged.
    """
    state = get_optimizer_state_dict(module, list(optimizers), options=_BY_NAME)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    settings = [{name: value for name, value in group.items() if name != "params"} for group in groups]
    try:
        with world.watch():  # a process that is gone is no reason to call a checkpoint damaged
            load({"optimizer": state}, checkpoint_id=folder / "optimizer", no_dist=world.size == 1)
    except (CheckpointException, OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
        raise _damaged(folder, "optimizer", error) from error
    set_optimizer_state_dict(module, list(optimizers), state, options=_BY_NAME)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for group, own in zip(groups, settings, strict=True):
        group.update(own)


def _strip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name weights as the model does, not as the module with its loss."""
    return {name.removeprefix("model."): tensor for name, tensor in weights.items()}


def _damaged(folder: Path, name: str, error: BaseException) -> TrainingError:
    reason = str(error)[:200].strip().splitlines()
    return TrainingError(
        f"{folder / name}: cannot be read ({reason[-1] if reason else type(error).__name__})",
        hint=f"The checkpoint is damaged. Delete {folder}: the run goes on from the one before.",
    )
