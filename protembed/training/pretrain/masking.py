"""The masked-language-model objective: which residues are hidden, and what stands in their place."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protembed.sequences.alphabet import Alphabet
from protembed.training.pretrain.config import MaskSection

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class MaskedTokens:
    """What the model sees (T,), the places (M,) it is asked about, and the tokens (M,) that truly stand there."""

    tokens: Ids
    places: Ids
    targets: Ids


def mask_tokens(tokens: Ids, alphabet: Alphabet, section: MaskSection, rng: np.random.Generator) -> MaskedTokens:
    """Choose a share of the standard residues; hide most, replace some by random residues, keep the rest (BERT).

    Special tokens and ambiguous letters are neither chosen nor drawn; where there is nothing else, none is chosen.

    >>> from protembed.sequences.alphabet import PROTEMBED
    >>> masked = mask_tokens(PROTEMBED.encode("MKTAYIAKQR"), PROTEMBED, MaskSection(), np.random.default_rng(0))
    >>> len(masked.places)
    2
    """
    candidates = np.flatnonzero(np.isin(tokens, alphabet.standard_ids))
    count = min(len(candidates), max(1, round(section.rate * len(candidates))))
    places = np.sort(rng.choice(candidates, size=count, replace=False))
    fate = rng.random(count)
    seen = tokens.copy()
    seen[places[fate < section.masked]] = alphabet.mask_id
    swapped = places[(fate >= section.masked) & (fate < section.masked + section.random)]
    seen[swapped] = rng.choice(alphabet.standard_ids, size=len(swapped))
    return MaskedTokens(tokens=seen, places=places, targets=tokens[places])


def hide_groups(tokens: Ids, alphabet: Alphabet, rng: np.random.Generator, *, groups: int = 7) -> list[MaskedTokens]:
    """Split the standard residues at random into `groups` and hide one group at a time: every residue once.

    The protocol of our perplexities: 7 groups are about 15 % a pass, every chosen residue becomes the mask token.
    """
    places = rng.permutation(np.flatnonzero(np.isin(tokens, alphabet.standard_ids)))
    passes = []
    for group in np.array_split(places, groups):
        chosen = np.sort(group)
        seen = tokens.copy()
        seen[chosen] = alphabet.mask_id
        passes.append(MaskedTokens(tokens=seen, places=chosen, targets=tokens[chosen]))
    return passes
