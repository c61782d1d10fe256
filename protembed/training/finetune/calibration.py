"""Calibration: one temperature that makes the probabilities of a head mean what they say."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from protembed.tasks.metrics import Array

RANGE = (0.05, 20.0)
_STEPS = 60
_GOLDEN = (5**0.5 - 1) / 2


def fit_temperature(logits: Array, target: Array) -> float:
    """Return the temperature by which logits are divided so that the validation set is likeliest.

    Classes: logits (M, C), targets (M,). Yes or no (flags, contacts): both of one shape, targets 0 and 1.
    Guo et al. 2017, arXiv 1706.04599. The loss has one minimum in log T, found by golden sections within RANGE.

    >>> round(fit_temperature(np.array([[4.0, 0], [4, 0], [4, 0], [4, 0]]), np.array([0, 0, 0, 1])), 2)
    3.64
    """
    x = logits.astype(np.float64)
    loss = _binary(x, target) if logits.shape == target.shape else _classes(x, target)
    low, high = np.log(RANGE)
    for _ in range(_STEPS):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        low, high = (low, right) if loss(np.exp(left)) < loss(np.exp(right)) else (left, high)
    return float(np.exp((low + high) / 2))


def _classes(logits: npt.NDArray[np.float64], target: Array) -> Callable[[float], float]:
    above = logits - np.take_along_axis(logits, target.astype(np.int64)[:, None], axis=1)  # (M, C), 0 at the target
    highest = above.max(axis=1, keepdims=True)

    def loss(temperature: float) -> float:
        scaled = np.exp((above - highest) / temperature).sum(axis=1)
        return float(np.mean(highest[:, 0] / temperature + np.log(scaled)))

    return loss


def _binary(logits: npt.NDArray[np.float64], target: Array) -> Callable[[float], float]:
    margin = np.where(target.astype(bool), -logits, logits)
    return lambda temperature: float(np.mean(np.logaddexp(0, margin / temperature)))
