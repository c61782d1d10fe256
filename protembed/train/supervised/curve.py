"""The curve of a head's training, drawn from its metrics file."""

import json
from pathlib import Path


def draw_curve(run: Path) -> str:
    """Draw `curve.png` from `metrics.jsonl`; return a sentence that says what was done, or what it would take."""
    try:
        import matplotlib
    except ImportError:
        return "no curve was drawn: pip install 'protembed[plot]'"
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    reports = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    epochs = [report["epoch"] for report in reports]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot(epochs, [report["loss"] for report in reports], marker=".", linewidth=0.8)
    left.set(xlabel="epoch", ylabel="training loss")
    right.plot(epochs, [report["value"] for report in reports], marker=".", linewidth=0.8)
    right.set(xlabel="epoch", ylabel=f"{reports[0]['metric']} on the validation set")
    best = max(reports, key=lambda report: report["value"])
    right.plot([best["epoch"]], [best["value"]], marker="o", fillstyle="none", linestyle="none", color="black")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    path = run / "curve.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return f"{path}: the curve"
