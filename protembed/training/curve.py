"""The curves of a run, drawn from its metrics file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Reports = list[dict[str, Any]]


def draw_panels(run: Path, name: str, draw: Callable[[Reports, Any, Any], None]) -> str:
    """Draw `curve.png` from `metrics.jsonl`: `draw` fills a left and a right panel (matplotlib Axes).

    Returns a sentence that says what was done, or what it would take.
    """
    try:
        import matplotlib
    except ImportError:
        return "no curve was drawn: pip install 'protembed[plot]'"
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    reports = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    draw(reports, left, right)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    path = run / "curve.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return f"{path}: {name}"


def draw_curve(run: Path) -> str:
    """Draw loss and perplexity of a pretraining run; see `draw_panels`."""
    return draw_panels(run, "the loss curve", _draw)


def _draw(reports: Reports, left: Any, right: Any) -> None:
    evaluated = [report for report in reports if report["valid_perplexity"] is not None]
    left.plot([r["tokens"] / 1e6 for r in reports], [r["loss"] for r in reports], linewidth=0.8)
    profiled = [report for report in reports if report.get("profile_loss") is not None]
    if profiled:
        left.plot([r["tokens"] / 1e6 for r in profiled], [r["profile_loss"] for r in profiled], linewidth=0.8)
        left.legend(["masked residues", "profiles"], frameon=False)
    left.set(xlabel="tokens (millions)", ylabel="training loss (nats per residue)")
    right.plot([r["tokens"] / 1e6 for r in evaluated], [r["valid_perplexity"] for r in evaluated], marker=".")
    right.set(xlabel="tokens (millions)", ylabel="perplexity on held-out proteins")
