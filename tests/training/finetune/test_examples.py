"""What a head is shown: the right residues of long proteins, pairs far enough apart, states of the right arithmetic."""

from pathlib import Path

import numpy as np
import pytest
import torch

from protembed.backends.torch_backend import TorchBackend
from protembed.checkpoints import native as checkpoint
from protembed.errors import ModelError
from protembed.models.head_config import Kind
from protembed.models.protein_model import ProteinModel
from protembed.sequences.alphabet import PROTEMBED
from protembed.sequences.records import Record
from protembed.tasks.labels.encoding import Labelled
from protembed.training.finetune.examples import Examples, lay_out
from protembed.training.finetune.features import compute_states

CPU = torch.device("cpu")
SEQUENCE = "ACDEFGHIKLMNPQRSTVWY"


def laid_out(kind: Kind, target: object, longest: int = 1022, sequence: str = SEQUENCE) -> Examples:
    values = np.asarray(target)
    counts = np.ones(len(values) if values.ndim else (), dtype=bool)
    protein = Labelled(record=Record("a", sequence), target=values, counts=counts)
    return lay_out([protein], kind, PROTEMBED, longest=longest, cut=True)


def test_of_a_long_protein_with_one_label_the_first_residues_are_read() -> None:
    examples = laid_out("sequence_value", 1.5, longest=8)
    assert PROTEMBED.decode(examples.tokens) == "ACDEFGHI"
    assert (examples.targets.tolist(), examples.long, len(examples)) == ([1.5], 1, 1)


def test_of_a_long_protein_with_labels_for_residues_all_windows_are_read() -> None:
    examples = laid_out("residue_classes", np.arange(20), longest=8)
    parts = np.split(examples.tokens, examples.offsets[1:-1])
    assert "".join(PROTEMBED.decode(part) for part in parts) == SEQUENCE
    assert max(examples.lengths) <= 8 + 2
    assert examples.targets[examples.counts].tolist() == list(range(20))
    for part, start in zip(parts, examples.offsets, strict=False):
        rows = np.arange(start, start + len(part))[1:-1]
        assert PROTEMBED.decode(part) == "".join(SEQUENCE[n] for n in examples.targets[rows])


def test_contacts_are_of_pairs_six_or_more_apart_each_once() -> None:
    where = np.stack((3.0 * np.arange(20), np.zeros(20), np.zeros(20)), axis=1)
    where[19] = where[0] + [0, 7.99, 0]
    where[18] = where[0] + [0, 8.01, 0]
    (batch,) = laid_out("contacts", where).batches(100, CPU)
    counted = batch.counts[0].nonzero().tolist()
    assert counted == [[i, j] for i in range(20) for j in range(i + 6, 20)]
    touching = (batch.targets[0] & batch.counts[0]).nonzero().tolist()
    assert [0, 19] in touching
    assert [0, 18] not in touching


def test_hidden_states_of_another_arithmetic_or_other_proteins_are_computed_again(
    model_file: Path, tmp_path: Path
) -> None:
    examples = laid_out("residue_classes", np.arange(20))
    other = laid_out("residue_classes", np.arange(20), sequence=SEQUENCE[::-1])
    for number, (dtype, some) in enumerate(
        ((torch.float32, examples), (torch.float32, examples), (torch.bfloat16, examples), (torch.float32, other))
    ):
        backend = TorchBackend(checkpoint.load(model_file, device=CPU, dtype=dtype))
        found = compute_states(backend, some, [("residues", 2)], tmp_path)[("residues", 2)]
        assert found.shape == (22, 32)
        assert len(list(tmp_path.iterdir())) == (1, 1, 2, 3)[number]
    assert {path.suffix for path in tmp_path.iterdir()} == {".npy"}, "nothing half-written lies beside them"


def test_hidden_states_that_float16_does_not_hold_are_refused(model: ProteinModel, tmp_path: Path) -> None:
    class Loud(TorchBackend):
        def run(self, *words: object) -> dict[object, np.typing.NDArray[np.float32]]:  # type: ignore[override]
            return {("residues", 2): np.full((22, 32), 7e4, dtype=np.float32)}

    with pytest.raises(ModelError, match="do not fit into float16"):
        compute_states(Loud(model), laid_out("residue_classes", np.arange(20)), [("residues", 2)], tmp_path)
    assert not list(tmp_path.iterdir())
