"""What training changes: the weights of a head and, where told, of an encoder; how they step, and their best state."""

import math

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from protembed.errors import TrainingError
from protembed.models.heads.base import TaskHead
from protembed.models.protein_model import ProteinModel
from protembed.training.finetune.config import TrainSection

LOWER = "Lower [train] learning_rate or encoder_learning_rate."
"""What to do about numbers that are none."""


class Weights:
    """The trained weights under AdamW (Loshchilov and Hutter, arXiv 1711.05101); matrices decay.

    The learning rate warms up and goes down to nothing at the last of `steps` (cosine).
    """

    def __init__(self, head: TaskHead, model: ProteinModel, section: TrainSection, steps: int) -> None:
        self._head, self._model, self._section = head, model, section
        self._steps = steps
        self._best: dict[str, Tensor] = {}
        self.step = 0
        groups = []
        for module, peak in ((head, section.learning_rate), (model, section.encoder_learning_rate)):
            trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
            for matrices, decay in ((True, section.weight_decay), (False, 0.0)):
                some = [parameter for parameter in trained if (parameter.ndim > 1) is matrices]
                groups += [{"params": some, "lr": peak, "peak": peak, "weight_decay": decay}] if some else []
        self._optimizer = AdamW(groups, fused=True)

    def __len__(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for group in self._optimizer.param_groups for parameter in group["params"])

    @property
    def learning_rate(self) -> float:
        """That of the head at the last step."""
        return float(self._optimizer.param_groups[0]["lr"])

    def update(self, loss: Tensor) -> float:
        """Take a step down a loss; return the loss. Raises TrainingError when it is not a number."""
        if not math.isfinite(value := float(loss.detach())):
            raise TrainingError(
                f"the loss is not a number at step {self.step + 1}",
                hint=LOWER,
            )
        factor = self._factor()
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * factor
            nn.utils.clip_grad_norm_(group["params"], self._section.clip)
        self._optimizer.step()
        self.step += 1
        return value

    def remember(self) -> None:
        """Keep a copy of the weights as they are."""
        self._best = {name: tensor.detach().clone() for name, tensor in self._state().items()}

    @torch.no_grad()
    def go_back(self) -> None:
        """Return to the weights that were kept last."""
        for name, tensor in self._state().items():
            tensor.copy_(self._best[name])

    def _factor(self) -> float:
        """Return the share of the peak learning rate that the next step takes."""
        warm = max(1.0, self._section.warmup_share * self._steps)
        if self.step < warm:
            return (self.step + 1) / (warm + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (self.step - warm) / max(1.0, self._steps - warm))))

    def _state(self) -> dict[str, Tensor]:
        trained = {f"model.{name}": p for name, p in self._model.named_parameters() if p.requires_grad}
        return trained | {f"head.{name}": tensor for name, tensor in self._head.state_dict().items()}
