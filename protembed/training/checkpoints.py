"""Training checkpoints: a folder a step, complete or not there at all, for any number of processes."""

import json
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
    try:
        saved = json.loads((folder / "progress.json").read_text())
        values = saved["progress"]
        progress = Progress(**{**values, "cursor": Cursor(**values["cursor"])})
        was = _identity({"corpus": state["corpus"], "objective": _MASKED_ALONE, **saved["config"]})
    except (OSError, ValueError, KeyError, TypeError) as error:
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


def read_config(folder: Path) -> dict[str, Any]:
    """Return the configuration that a checkpoint was made with. Raises TrainingError when it is damaged."""
    try:
        config: dict[str, Any] = json.loads((folder / "progress.json").read_text())["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, "progress.json", error) from error
    return config


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

    Raises TrainingError when it is damaged.
    """
    state = get_optimizer_state_dict(module, list(optimizers), options=_BY_NAME)
    try:
        with world.watch():  # a process that is gone is no reason to call a checkpoint damaged
            load({"optimizer": state}, checkpoint_id=folder / "optimizer", no_dist=world.size == 1)
    except (CheckpointException, OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
        raise _damaged(folder, "optimizer", error) from error
    set_optimizer_state_dict(module, list(optimizers), state, options=_BY_NAME)


def _strip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name weights as the model does, not as the module with its loss."""
    return {name.removeprefix("model."): tensor for name, tensor in weights.items()}


def _damaged(folder: Path, name: str, error: BaseException) -> TrainingError:
    reason = str(error).strip().splitlines()
    return TrainingError(
        f"{folder / name}: cannot be read ({reason[-1] if reason else type(error).__name__})",
        hint=f"The checkpoint is damaged. Delete {folder}: the run goes on from the one before.",
    )
