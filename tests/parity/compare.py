"""How far a model is from what the authors' code computed, for the arrays of the reference data."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from protembed.api import Model
from protembed.backends.torch_backend import TorchBackend
from protembed.models.packing import Packed
from protembed.models.protein_model import ProteinModel

Arrays = Mapping[str, npt.NDArray[Any]]
TOGETHER = ("packed", "packedall")  # several proteins in one row
LAST = ("hidden", "sequence_output", "embeddings", "normed")
BEFORE_FINAL_NORM = ("blocks", "hidden_states")  # of as many entries as there are layers: outputs of the blocks


@torch.inference_mode()
def differences(model: ProteinModel, arrays: Arrays) -> dict[str, float]:
    """Return the largest absolute difference of every kind of array, over all sequences on their own."""
    worst: dict[str, float] = defaultdict(float)
    names = {key.partition(".")[0] for key in arrays if key.endswith(".tokens")} - {"batch", *TOGETHER}
    for name in names:
        ours = compute(model, torch.from_numpy(arrays[f"{name}.tokens"]).flatten())
        for key in arrays:
            sequence, _, kind = key.partition(".")
            if sequence == name and kind in KINDS and (kind != "logits" or model.mlm_head is not None):
                expected = arrays[key]
                actual = KINDS[kind](ours, expected).numpy()
                worst[kind] = max(worst[kind], float(np.abs(actual - expected).max()))
    return dict(worst)


def compute(model: ProteinModel, tokens: Tensor) -> dict[str, Tensor]:
    """Run one protein and return everything that the reference data can hold."""
    n_layers = model.card.encoder.n_layers
    layout = Packed([len(tokens)])
    hidden = model.encoder(tokens, layout, range(n_layers + 1))
    ours = {"layers": torch.stack([hidden[layer] for layer in range(n_layers + 1)]), "last": hidden[n_layers]}
    if model.mlm_head is not None:
        ours["logits"] = model.logits(hidden[n_layers])
    if model.card.pooler is not None:
        ours["pooled"] = model.outputs(tokens, layout, [("pooled", n_layers)])["pooled", n_layers][0]
    if model.card.contact_head:
        ours["contacts"] = model.contacts(tokens)
    return ours


def standard_logits(model: ProteinModel, arrays: Arrays) -> float:
    """Return the largest difference of `Model.logits` from the original's scores at the rows of A, C, D, ... Y."""
    alphabet = model.card.alphabet
    tokens, expected = arrays["p2.tokens"].flatten(), arrays["p2.logits"]
    residues = slice(alphabet.prefix, len(tokens) - alphabet.suffix)
    rows = [alphabet.tokens.index(letter) for letter in "ACDEFGHIKLMNPQRSTVWY"]
    ours = Model(TorchBackend(model)).logits([alphabet.decode(tokens)])[0]
    return float(np.abs(ours - expected[residues][:, rows]).max())


def _layers(ours: dict[str, Tensor], expected: npt.NDArray[Any]) -> Tensor:
    """Pick all layers, or the blocks; the last block is seen after the final norm only and stands in for itself."""
    if len(expected) == len(ours["layers"]):
        return ours["layers"]
    return torch.cat((ours["layers"][1:-1], torch.from_numpy(expected[-1:])))


def _head_input(ours: dict[str, Tensor], expected: npt.NDArray[Any]) -> Tensor:
    return (ours["last"] if expected.ndim == 3 else ours["pooled"]).unsqueeze(0)


KINDS = {
    **dict.fromkeys(LAST, lambda ours, expected: ours["last"]),
    **dict.fromkeys(("representations", *BEFORE_FINAL_NORM), _layers),
    "logits": lambda ours, expected: ours["logits"][:, : expected.shape[1]],
    "pooled_output": lambda ours, expected: ours["pooled"],
    "contacts": lambda ours, expected: ours["contacts"],
    "head_input": _head_input,
}
