"""What a run will need, told before it begins."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protembed.models.config import EncoderConfig

DATASET_BYTES = 600
"""What HDF5 takes for a dataset beside its values: header, attributes, its place in the index."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run will need: bytes written, bytes of memory for weights and one batch, floating-point operations."""

    output_bytes: int
    memory_bytes: int
    operations: int


def estimate(
    config: EncoderConfig, lengths: npt.NDArray[np.int32], *, value_bytes: int, datasets: int, budget: int
) -> Estimate:
    """Estimate a run over proteins of these lengths, at float32.

    Values of `value_bytes` in all are written in `datasets` datasets; `budget` tokens are in a batch.
    """
    counts = lengths.astype(np.int64)
    feed_forward = (3 if config.activation == "swiglu" else 2) * config.d_model * config.d_ff
    matrices = 4 * config.d_model**2 + feed_forward
    a_layer = 2 * matrices * int(counts.sum()) + 4 * config.d_model * int((counts**2).sum())
    weights = config.vocab_size * config.d_model + config.n_layers * matrices
    activations = max(budget, int(counts.max(initial=0))) * (6 * config.d_model + 3 * config.d_ff)
    return Estimate(
        output_bytes=value_bytes + datasets * DATASET_BYTES,
        memory_bytes=4 * (weights + activations),
        operations=config.n_layers * a_layer,
    )
