"""Logistic regression with an L1 penalty, solved exactly: proximal Newton steps, each by coordinate descent.

Minimises the sum of the rows' log losses plus `penalty` times the sum of |weights|; the bias is free. Source: Lee, Sun
and Saunders 2014, doi 10.1137/130921428; the coordinate step is Friedman, Hastie and Tibshirani's 2010,
doi 10.18637/jss.v033.i01.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NEWTON_STEPS = 60
SWEEPS = 200
TOLERANCE = 1e-7  # relative fall of the objective at which it has converged
ROWS = 65_536  # worked on at once

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class L1Regression:
    """Weights (F,) and bias; the probability is the logistic function of their sum over a row."""

    weights: Vector
    bias: float
    iterations: int


def fit(x: npt.NDArray[np.floating], y: npt.NDArray[np.bool_], *, penalty: float) -> L1Regression:
    """Fit rows x (R, F) to y (R,)."""
    x = np.hstack((x, np.ones((len(x), 1), dtype=x.dtype)))
    share = min(max(float(y.mean()), 1e-6), 1 - 1e-6)
    w = np.append(np.zeros(x.shape[1] - 1), np.log(share / (1 - share)))
    penalties = np.append(np.full(x.shape[1] - 1, penalty), 0.0)
    value = _objective(x, y, w, penalties)
    iterations = 0
    for _ in range(NEWTON_STEPS):
        iterations += 1
        gradient, curvature = _derivatives(x, y, w)
        step = _descend(gradient, curvature, w, penalties) - w
        size = 1.0
        while (tried := _objective(x, y, w + size * step, penalties)) > value and size > 1e-6:
            size /= 2
        fall = value - tried
        if fall <= 0:
            break
        w, value = w + size * step, tried
        if fall < TOLERANCE * value:
            break
    return L1Regression(weights=w[:-1], bias=float(w[-1]), iterations=iterations)


def _objective(x: npt.NDArray[np.floating], y: npt.NDArray[np.bool_], w: Vector, penalties: Vector) -> float:
    scores = (x @ w.astype(x.dtype)).astype(np.float64)
    return float(np.logaddexp(0, np.where(y, -scores, scores)).sum() + penalties @ np.abs(w))


def _derivatives(x: npt.NDArray[np.floating], y: npt.NDArray[np.bool_], w: Vector) -> tuple[Vector, Vector]:
    """Return gradient (F,) and curvature (F, F) of the summed loss."""
    gradient, curvature = np.zeros(len(w)), np.zeros((len(w), len(w)))
    for start in range(0, len(x), ROWS):
        part = x[start : start + ROWS].astype(np.float64)
        probabilities = 0.5 * (1 + np.tanh(part @ w / 2))
        gradient += part.T @ (probabilities - y[start : start + ROWS])
        curvature += (part * (probabilities * (1 - probabilities))[:, None]).T @ part
    return gradient, curvature


def _descend(gradient: Vector, curvature: Vector, w: Vector, penalties: Vector) -> Vector:
    """Minimise the quadratic model with its penalty, one weight at a time."""
    found = w.copy()
    slope = gradient.copy()  # of the quadratic model at `found`
    diagonal = np.maximum(np.diag(curvature), 1e-12)
    for _ in range(SWEEPS):
        largest = 0.0
        for k in range(len(w)):
            target = found[k] - slope[k] / diagonal[k]
            new = np.sign(target) * max(abs(target) - penalties[k] / diagonal[k], 0.0)
            change = new - found[k]
            if change:
                slope += curvature[k] * change
                found[k] = new
                largest = max(largest, change * change * diagonal[k])
        if largest < 1e-6:
            break
    return found
