"""Softmax regression on hundreds of thousands of rows, fitted until it has converged.

Columns are standardised and rotated to the principal axes of the training rows, which changes no prediction of the
fitted model and lets L-BFGS converge in tens of iterations.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

PENALTY = 1e-5  # on the squared weights, beside the mean loss: keeps idle directions at zero
ITERATIONS = 300
ROWS = 32_768  # worked on at once

Features = npt.NDArray[np.float16] | npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Regression:
    """A softmax regression on standardised, rotated columns: (R, F) -> (R, classes)."""

    mean: Tensor
    rotation: Tensor
    weights: Tensor
    iterations: int

    def accuracy(self, x: Features, y: npt.NDArray[np.int64]) -> float:
        """Return the share of rows whose largest score is their class's."""
        right = 0
        for start in range(0, len(x), ROWS):
            scores = rotate(x[start : start + ROWS], self.mean, self.rotation) @ self.weights
            right += int((scores.argmax(dim=1).numpy() == y[start : start + ROWS]).sum())
        return right / len(x)


def rotate(x: Features, mean: Tensor, rotation: Tensor) -> Tensor:
    """Standardise and rotate some rows, and add a column of ones; (R, F) -> (R, P + 1)."""
    inputs = (torch.from_numpy(x).float() - mean) @ rotation
    return torch.cat((inputs, torch.ones(len(inputs), 1)), dim=1)


def principal_axes(x: Features) -> tuple[Tensor, Tensor]:
    """Return mean (F,) and the matrix (F, P) that turns centred columns into uncorrelated ones of variance 1."""
    total, squares = np.zeros(x.shape[1]), np.zeros((x.shape[1], x.shape[1]))
    for start in range(0, len(x), ROWS):
        part = x[start : start + ROWS].astype(np.float32)
        total += part.sum(axis=0, dtype=np.float64)
        squares += part.T @ part
    mean = total / len(x)
    covariance = squares / len(x) - np.outer(mean, mean)
    deviation = np.sqrt(np.maximum(np.diag(covariance), 1e-12))
    values, vectors = np.linalg.eigh(covariance / np.outer(deviation, deviation))
    kept = values > 1e-6 * values.max()  # what is left are columns that are sums of others
    rotation = vectors[:, kept] / np.sqrt(values[kept]) / deviation[:, None]
    return torch.from_numpy(mean).float(), torch.from_numpy(rotation).float()


def fit(x: Features, y: npt.NDArray[np.int64]) -> Regression:
    """Fit a softmax regression by L-BFGS on all rows, until the gradient is below 1e-5."""
    mean, rotation = principal_axes(x)
    weights = torch.zeros(rotation.shape[1] + 1, int(y.max()) + 1, requires_grad=True)
    targets = torch.from_numpy(y)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=ITERATIONS, tolerance_grad=1e-5, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = PENALTY * weights[:-1].square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        value = total.detach()
        for start in range(0, len(x), ROWS):
            scores = rotate(x[start : start + ROWS], mean, rotation) @ weights
            chosen = targets[start : start + ROWS]
            loss = torch.nn.functional.cross_entropy(scores, chosen, reduction="sum") / len(x)
            loss.backward()  # type: ignore[no-untyped-call]
            value = value + loss.detach()
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    iterations = int(optimizer.state[weights]["n_iter"])
    return Regression(mean=mean, rotation=rotation, weights=weights.detach(), iterations=iterations)
