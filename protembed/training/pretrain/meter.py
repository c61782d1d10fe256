"""What happens between two reports of a run, added up into the next one."""

import time

import numpy as np
import torch

from protembed.training.checkpoints import Progress
from protembed.training.log import Report, SpikeWatch, used_memory
from protembed.training.parallel import World
from protembed.training.pretrain.config import PretrainConfig
from protembed.training.pretrain.forecast import peak_flops


class RunMeter:
    """What is added up between two reports of a run."""

    def __init__(self, config: PretrainConfig, world: World, flops_per_token: float, epoch_size: int) -> None:
        self._steps, self._device, self._epoch_size = config.train.steps, world.device, epoch_size
        self._spikes = SpikeWatch()
        peak = config.train.peak_tflops * 1e12 or _peak(world.device)
        self._peak_tokens = peak * world.size / flops_per_token if peak else None
        self.restart()

    def restart(self) -> None:
        """Forget what was added up."""
        self._began = time.perf_counter()
        self._losses: list[float] = []
        self._profiles: list[float] = []
        self._norms: list[float] = []
        self._warning = ""
        self._tokens = 0
        self._waited = 0.0

    def warn(self, warning: str) -> None:
        """Put a warning into the next report."""
        self._warning = warning or self._warning

    def see(self, loss: float, norm: float, tokens: int, waited: float, profile: float | None = None) -> None:
        """Take a step in."""
        self._profiles += [] if profile is None else [profile]
        self._losses.append(loss)
        self._norms.append(norm)
        self._warning = self._spikes.see(loss) or self._warning
        self._tokens += tokens
        self._waited += waited

    def report(self, progress: Progress, rate: float) -> Report:
        """Say what happened since the last report, how far the run is, and at which learning rate."""
        seconds = time.perf_counter() - self._began
        speed = self._tokens / seconds
        return Report(
            step=progress.step,
            steps=self._steps,
            tokens=progress.tokens,
            epoch=round(progress.cursor.epoch + progress.cursor.used / self._epoch_size, 4),
            seconds=round(progress.seconds, 3),
            loss=float(np.mean(self._losses)),
            profile_loss=float(np.mean(self._profiles)) if self._profiles else None,
            learning_rate=rate,
            gradient_norm=float(np.mean(self._norms)),
            tokens_per_second=round(speed, 1),
            data_wait=round(self._waited / seconds, 4),
            memory_gb=round(used_memory(self._device), 3),
            mfu=round(speed / self._peak_tokens, 4) if self._peak_tokens else None,
            warning=self._warning,
        )


def _peak(device: torch.device) -> float | None:
    return peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
