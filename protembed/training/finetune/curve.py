"""The curve of a head's training, drawn from its metrics file."""

from pathlib import Path
from typing import Any

from protembed.training.curve import Reports, draw_panels


def draw_curve(run: Path) -> str:
    """Draw loss and metric of the training of a head; see `draw_panels`."""
    return draw_panels(run, "the curve", _draw)


def _draw(reports: Reports, left: Any, right: Any) -> None:
    epochs = [report["epoch"] for report in reports]
    left.plot(epochs, [report["loss"] for report in reports], marker=".", linewidth=0.8)
    left.set(xlabel="epoch", ylabel="training loss")
    right.plot(epochs, [report["value"] for report in reports], marker=".", linewidth=0.8)
    right.set(xlabel="epoch", ylabel=f"{reports[0]['metric']} on the validation set")
    best = max(reports, key=lambda report: report["value"])
    right.plot([best["epoch"]], [best["value"]], marker="o", fillstyle="none", linestyle="none", color="black")
