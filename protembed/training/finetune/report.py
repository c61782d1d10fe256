"""What people see of the training of a head: a report an epoch, in a file of JSON lines, too."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """What an epoch did: mean loss over its batches, and the value of the metric on the validation set."""

    epoch: int
    epochs: int
    steps: int
    loss: float
    metric: str
    value: float
    best: bool
    learning_rate: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"epoch {self.epoch}: loss {self.loss:.4f}, {self.metric} {self.value:.4f}"
            f"{' (best)' if self.best else ''}, {self.seconds:.0f} s"
        )

    def append_to(self, path: Path) -> None:
        """Write a line of JSON at the end of a file."""
        with path.open("a") as file:
            file.write(json.dumps(asdict(self)) + "\n")
