"""What would more compute buy? A power law through the validation losses of runs: L(t) = L_inf + a t^-b.

t are tokens, L is the log of the validation perplexity (nats a residue). For every b of a grid, finer around the best,
the other two come from least squares, neither below zero. The range beside a forecast is that of all b whose sum of
squares an F test at 95 % would not reject. It says nothing about how wrong the form is: losses under a decaying
learning rate fall faster than the law, and a larger model has another law.

    python research/loss_curve.py runs/bundled/metrics.jsonl --plot curve.png
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from protembed.cli.console import Console, print_table
from protembed.errors import InputError

EXPONENTS = np.geomspace(0.01, 3, 600)
FACTORS = (1, 3, 10, 100)
F_QUANTILE = 4.0  # about the 95 % quantile of F(1, n) for n of 30 to 60
FEWEST = 5

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Law:
    """L(t) = floor + scale * t ** -exponent, t in tokens; `error` is the root mean square of what is left."""

    floor: float
    scale: float
    exponent: float
    error: float

    def at(self, tokens: float) -> float:
        """Return the loss at some tokens."""
        return float(self.floor + self.scale * tokens**-self.exponent)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The perplexity that a law expects after some tokens, and what other laws that fit as well expect."""

    tokens: float
    perplexity: float
    low: float
    high: float


def read(paths: Sequence[Path], *, from_tokens: float = 0) -> tuple[Vector, Vector]:
    """Return tokens and losses (nats) of all evaluations in metrics files; the last one counts where a step came twice.

    Raises InputError when there are too few.
    """
    found: dict[tuple[Path, int], tuple[float, float]] = {}
    for path in paths:
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            try:
                report = json.loads(line)
                if report["valid_perplexity"] is not None and report["tokens"] >= from_tokens:
                    found[path, report["step"]] = report["tokens"], math.log(report["valid_perplexity"])
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path}, line {number}: not a report of protembed pretrain ({error})") from error
    if len(found) < FEWEST:
        raise InputError(
            f"{len(found)} evaluations are too few for a law of three numbers", hint="Evaluate more often."
        )
    tokens, losses = np.array(sorted(found.values())).T
    return tokens, losses


def fit(tokens: Vector, losses: Vector, exponents: Vector = EXPONENTS) -> tuple[Law, list[Law]]:
    """Return the best law, and all of the grid that fit nearly as well."""
    laws = [_fit_one(tokens, losses, float(exponent)) for exponent in exponents]
    for reach in (1.05, 1.002):  # two finer grids around the best
        middle = min(laws, key=lambda law: law.error).exponent
        laws += [_fit_one(tokens, losses, float(b)) for b in np.geomspace(middle / reach, middle * reach, 200)]
    best = min(laws, key=lambda law: law.error)
    allowed = best.error**2 * (1 + F_QUANTILE / max(len(tokens) - 3, 1))
    return best, [best, *(law for law in laws if law.error**2 <= allowed)]


def _fit_one(tokens: Vector, losses: Vector, exponent: float) -> Law:
    """Fit floor and scale by least squares, neither below zero."""
    middle = math.exp(np.log(tokens).mean())
    powers = (tokens / middle) ** -exponent
    slope = float(np.cov(powers, losses, bias=True)[0, 1] / powers.var())
    slope = max(slope, 0.0)
    floor = float(losses.mean() - slope * powers.mean())
    if floor < 0:
        floor, slope = 0.0, float(powers @ losses / (powers @ powers))
    error = float(np.sqrt(np.mean((floor + slope * powers - losses) ** 2)))
    return Law(floor=floor, scale=slope * middle**exponent, exponent=exponent, error=error)


def forecast(best: Law, others: Sequence[Law], tokens: float) -> list[Forecast]:
    """Return what to expect after multiples of some tokens."""
    rows = []
    for factor in FACTORS:
        values = [math.exp(law.at(factor * tokens)) for law in others]
        expected = math.exp(best.at(factor * tokens))
        rows.append(Forecast(tokens=factor * tokens, perplexity=expected, low=min(values), high=max(values)))
    return rows


def draw(tokens: Vector, losses: Vector, best: Law, others: Sequence[Law], path: Path) -> None:
    """Draw the losses and the law, ten times further than the data."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    x = np.geomspace(tokens.min(), 10 * tokens.max(), 200)
    curves = np.array([[math.exp(law.at(t)) for t in x] for law in others])
    axes.fill_between(x, curves.min(axis=0), curves.max(axis=0), alpha=0.2, linewidth=0)
    axes.plot(x, [math.exp(best.at(t)) for t in x], linewidth=1, label="power law")
    axes.plot(tokens, np.exp(losses), ".", label="measured")
    axes.axvline(tokens.max(), color="grey", linewidth=0.6, linestyle=":")
    axes.set(xscale="log", xlabel="tokens", ylabel="perplexity on held-out proteins")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("metrics", type=Path, nargs="+")
    parser.add_argument(
        "--from-tokens", type=float, default=0, help="leave out what came before, the warm-up above all"
    )
    parser.add_argument("--plot", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    tokens, losses = read(options.metrics, from_tokens=options.from_tokens)
    best, others = fit(tokens, losses)
    rows = forecast(best, others, float(tokens.max()))
    console = Console()
    console.say(
        f"{len(tokens)} evaluations: L(t) = {best.floor:.4f} + {best.scale:.4g} t^-{best.exponent:.4f}, "
        f"root mean square error {best.error:.4f} nats"
    )
    print_table(
        "expected perplexity",
        ["tokens", "perplexity", "range"],
        [[f"{row.tokens:.3g}", f"{row.perplexity:.2f}", f"{row.low:.2f} to {row.high:.2f}"] for row in rows],
    )
    console.warn(
        "all but the first line are extrapolations of this model, this schedule and these data; past one epoch "
        "proteins repeat, and the law need not hold"
    )
    if options.plot:
        draw(tokens, losses, best, others, options.plot)
    if options.json:
        options.json.write_text(json.dumps({"law": asdict(best), "forecast": [asdict(row) for row in rows]}, indent=1))


if __name__ == "__main__":
    main()
