"""Draw the picture of the README from what `embed_speed.py --json` wrote.

python benchmarks/speed/draw_speed.py benchmarks/speed/embed_speed.json benchmarks/speed/embed_speed.png
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    results = json.loads(Path(sys.argv[1]).read_text())
    rows = sorted(results["contenders"], key=lambda row: row["times_cpu"])
    names = [row["name"].replace("-", " ") for row in rows]
    colours = ["#2a6f97" if name.startswith("protembed") else "#b8c4cc" for name in names]
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(rows) + 1.1), layout="constrained")
    bars = axes.barh(names, [row["times_cpu"] for row in rows], color=colours)
    labels = [f"{row['times_cpu']:.1f}x, {row['peak_mb']:,.0f} MB" for row in rows]
    axes.bar_label(bars, labels, padding=4)
    size, sample = results["settings"]["size"].upper(), results["sample"]
    title = f"ESM-2 {size}, {sample['proteins']} proteins, FASTA to file: times as fast as fair-esm (CPU), peak memory"
    figure.suptitle(title, fontsize=10)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    axes.margins(x=0.15)
    figure.savefig(sys.argv[2], dpi=150)


if __name__ == "__main__":
    main()
