"""The profile objective: what the homologs of a protein have at each of its residues, as a distribution."""

import numpy as np
import numpy.typing as npt

from protembed.sequences.alphabet import Alphabet
from protembed.training.corpus.counts import Counts


def profile_targets(
    tokens: npt.NDArray[np.int64], counts: Counts, alphabet: Alphabet, background: npt.NDArray[np.float32]
) -> Counts:
    """Turn counts of homologs (T, 20) into targets (T, 20) that add up to 1: own residue, homologs and pseudocounts.

    Where neither a standard residue stands nor homologs have one (special tokens, X) all 20 are 0: nothing is asked.

    >>> from protembed.sequences.alphabet import PROTEMBED
    >>> tokens, counts = PROTEMBED.encode("A"), np.zeros((3, 20), np.float32)
    >>> counts[1, 2] = 2.0
    >>> profile_targets(tokens, counts, PROTEMBED, np.full(20, 0.05, np.float32))[1, :4].round(4).tolist()
    [0.26249998807907104, 0.012500000186264515, 0.512499988079071, 0.012500000186264515]
    """
    total = counts + (tokens[:, None] == alphabet.standard_ids)  # (T, 20)
    seen = total.any(axis=1, keepdims=True)
    total = np.where(seen, total + background, 0).astype(np.float32)
    targets: Counts = total / np.maximum(total.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return targets
