"""The checkpoints in tests/golden, against what their authors' own code computed from them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from protembed.checkpoints.foreign import load_foreign
from tests.parity.compare import differences, standard_logits

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", ["esm2_hf", "esm2_stored_frequencies", "proteinlm_megatron"])
def test_golden(name: str) -> None:
    model = load_foreign(GOLDEN / name, device=torch.device("cpu"), dtype=torch.float32)
    with np.load(GOLDEN / name / "expected.npz") as arrays:
        found = differences(model, arrays)
        assert standard_logits(model, arrays) < 2e-5
    assert max(found.values()) < 2e-5, found
    assert model.card.name == name
    assert len(model.card.sha256) == 64
