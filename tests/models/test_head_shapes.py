"""The shapes that a head's configuration promises are those that its module has."""

import pytest
import torch

from protembed.models.head_config import Design, Kind, Reads
from protembed.models.head_shapes import head_shapes
from protembed.models.heads.registry import HEADS
from protembed.models.protein_model import ProteinModel
from tests.models.test_heads import SHAPES, head_of


@pytest.mark.parametrize(("kind", "design", "reads"), SHAPES)
def test_promised_shapes_are_those_of_the_module(
    model: ProteinModel, kind: Kind, design: Design, reads: Reads | None
) -> None:
    head = head_of(model.card, kind, design, reads)
    promised = head_shapes(head.config)
    if design == "proteinlm":
        assert promised is None
    else:
        assert promised == {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}


def test_every_design_is_among_the_shapes() -> None:
    tested = {(kind.partition("_")[0], design) for kind, design, _ in SHAPES}
    assert set(HEADS) == tested


def test_half_precision_does_not_matter(model: ProteinModel) -> None:
    head = head_of(model.card, "residue_classes").to(torch.float16)
    assert head_shapes(head.config) == {name: tuple(t.shape) for name, t in head.state_dict().items()}
