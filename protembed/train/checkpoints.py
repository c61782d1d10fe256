"""Training checkpoints: a folder a step, complete or not there at all."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from protembed import checkpoint
from protembed.errors import TrainingError
from protembed.model import ProteinModel
from protembed.train.data import Cursor

_PREFIX = "step_"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is: steps done, tokens seen, seconds spent, and its place in the data."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    cursor: Cursor = field(default_factory=Cursor)


def save_checkpoint(
    run: Path,
    model: ProteinModel,
    optimizers: Sequence[Optimizer],
    progress: Progress,
    config: dict[str, Any],
    *,
    keep: int,
) -> None:
    """Write `run/step_XXXXXXXX` under a temporary name, rename it when complete, delete all but the newest `keep`.

    `model.safetensors` in it is a native checkpoint: every other command reads it as it is.
    """
    final = run / f"{_PREFIX}{progress.step:08d}"
    temporary = run / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    checkpoint.save(model, temporary / "model.safetensors")
    torch.save([optimizer.state_dict() for optimizer in optimizers], temporary / "optimizer.pt")
    (temporary / "progress.json").write_text(json.dumps({"progress": asdict(progress), "config": config}, indent=1))
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)
    for old in list_checkpoints(run)[:-keep]:
        shutil.rmtree(old)


def list_checkpoints(run: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    return sorted(path for path in run.glob(f"{_PREFIX}*") if path.is_dir())


def restore(folder: Path, model: ProteinModel, optimizers: Sequence[Optimizer], config: dict[str, Any]) -> Progress:
    """Put a checkpoint into model and optimizers, and return how far it was.

    Raises TrainingError when the checkpoint belongs to another model or other data.
    """
    saved = json.loads((folder / "progress.json").read_text())
    for section in ("model", "data", "mask"):
        if json.loads(json.dumps(config[section])) != saved["config"][section]:
            raise TrainingError(
                f"{folder}: was trained with another [{section}] than the configuration says",
                hint="Give the run another folder ([train] out), or go back to the old configuration.",
            )
    weights = checkpoint.load(folder / "model.safetensors", device=torch.device("cpu"), dtype=torch.float32)
    model.load_state_dict(weights.state_dict())
    states = torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu")
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(state)
    values = saved["progress"]
    return Progress(**{**values, "cursor": Cursor(**values["cursor"])})
