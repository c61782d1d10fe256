"""What people see of a run: a report every few steps, in a file of JSON lines and, when asked for, in TensorBoard."""

import json
import math
import resource
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from protembed.errors import DependencyError
from protembed.outputs.files import atomic
from protembed.training.checkpoints import written

SPIKE_DEVIATIONS = 6.0
SPIKE_MEMORY = 0.95  # of the running mean and variance, a report


@dataclass(frozen=True, kw_only=True)
class Report:
    """What happened up to a step.

    `loss` (nats per masked residue), `profile_loss` (nats per residue; None without profiles) and `gradient_norm` are
    means since the last report, `tokens_per_second` and `data_wait` (share of the time spent waiting for data) too.
    `mfu` is the share of the device's peak that the model's own arithmetic takes (see
    `forecast.training_flops_per_token`); None where the peak is not known. `memory_gb` is the most that this process
    has used. `valid_perplexity` and `valid_profile`, the cross entropy (nats) of the profiles of validation proteins,
    stand only where the model was evaluated, `warning` where something is strange.
    """

    step: int
    steps: int
    tokens: int
    epoch: float
    seconds: float
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float
    data_wait: float
    memory_gb: float
    mfu: float | None = None
    valid_perplexity: float | None = None
    profile_loss: float | None = None
    valid_profile: float | None = None
    warning: str = ""

    def __str__(self) -> str:
        valid = "" if self.valid_perplexity is None else f", valid perplexity {self.valid_perplexity:.2f}"
        valid += "" if self.valid_profile is None else f", valid profile {self.valid_profile:.3f}"
        profile = "" if self.profile_loss is None else f", profile {self.profile_loss:.3f}"
        mfu = "" if self.mfu is None else f", MFU {self.mfu:.0%}"
        warning = f" ({self.warning})" if self.warning else ""
        return (
            f"step {self.step:,}: loss {self.loss:.3f}{profile}{valid}, gradient {self.gradient_norm:.2f}, "
            f"learning rate {self.learning_rate:.1e}, {self.tokens_per_second:,.0f} tokens/s{mfu}, "
            f"data wait {self.data_wait:.0%}, {self.memory_gb:.1f} GB{warning}"
        )


class RunLog:
    """`metrics.jsonl` of a run, from step `start` on: lines of steps that will be done again are dropped.

    One process of a run has it. Raises OutputError when it cannot be written.
    """

    def __init__(self, run: Path, start: int, *, tensorboard: bool) -> None:
        self._path = run / "metrics.jsonl"
        self._board = _open_tensorboard(run, start) if tensorboard else None
        if not self._path.exists():
            return
        kept = [line for line in self._path.read_text().splitlines(keepends=True) if _step_of(line) <= start]
        with atomic(self._path) as new, written(self._path):
            new.write_text("".join(kept))

    def write(self, report: Report) -> None:
        with written(self._path), self._path.open("a") as file:
            file.write(json.dumps(asdict(report)) + "\n")
        if self._board is not None:
            for name, value in asdict(report).items():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, report.step)
            self._board.flush()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # cut short when the run was killed


def _open_tensorboard(run: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise DependencyError(
            "[train] tensorboard: the package is not installed", hint="pip install 'protembed[tensorboard]'"
        ) from error
    return SummaryWriter(run, purge_step=start + 1)


class SpikeWatch:
    """Notice a loss far above its running mean.

    >>> watch = SpikeWatch()
    >>> [watch.see(loss) for loss in (2.9, 2.8, 2.85, 2.8, 2.82, 2.81, 2.8, 2.79, 2.8, 2.8, 4.0)][-1]
    'the loss jumped from about 2.81'
    """

    def __init__(self, *, wait: int = 8) -> None:
        self._wait = wait
        self._seen = 0
        self._mean = self._variance = 0.0

    def see(self, loss: float) -> str:
        """Take the loss of a step in; return a warning, or nothing."""
        mean = self._mean / (1 - SPIKE_MEMORY**self._seen) if self._seen else loss
        variance = self._variance / (1 - SPIKE_MEMORY**self._seen) if self._seen else 0.0
        self._seen += 1
        # One spike must not hide the next: it enters as the largest loss that is none.
        limit = mean + SPIKE_DEVIATIONS * max(math.sqrt(variance), 0.005 * mean)
        is_spike = self._seen > self._wait and loss > limit
        value = min(loss, limit) if self._seen > self._wait else loss
        self._mean = SPIKE_MEMORY * self._mean + (1 - SPIKE_MEMORY) * value
        self._variance = SPIKE_MEMORY * self._variance + (1 - SPIKE_MEMORY) * (value - mean) ** 2
        return f"the loss jumped from about {mean:.2f}" if is_spike else ""


def used_memory(device: torch.device) -> float:
    """Return the most memory this process has used, in GB: of the GPU, or of the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
