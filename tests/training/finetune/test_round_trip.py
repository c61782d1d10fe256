"""What `train` writes and says, `predict` accepts: through the real command line."""

from pathlib import Path

import pytest

from protembed.checkpoints.head_arrays import read_head_card
from tests.conftest import ROOT, Run

CASES = ROOT / "tests" / "tasks" / "labels" / "cases"


def test_classes_with_spaces_in_their_names_are_trained_whole(run: Run, model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "in.fasta").write_bytes((CASES / "labels_with_spaces.fasta").read_bytes())
    done = run("train", "--config", CASES / "task.toml", "--set", f"encoder.model={model_file}")
    assert done.returncode == 0, done.stderr
    head = tmp_path / "run" / "head.safetensors"
    labels = ("Cell membrane", "Cell wall", "Endoplasmic lumen", "Endoplasmic reticulum")
    assert read_head_card(head).labels == labels
    found = run("predict", "in.fasta", "-m", model_file, "--task", head)
    assert found.returncode == 0, found.stderr
    rows = [line.split("\t") for line in found.stdout.splitlines()]
    assert {len(row) for row in rows} == {7}
    assert {row[5] for row in rows[1:]} <= set(labels)
