"""What is written: modes that follow the umask, names that are not guessed, and no more than was promised."""

import os
from pathlib import Path

import pytest
import torch

from protembed.backends.load import ModelOptions, convert_model
from protembed.checkpoints import native as checkpoint
from protembed.checkpoints.head_files import save_head
from protembed.errors import OutputError
from protembed.models.head_config import HeadCard
from protembed.models.heads.registry import make_head
from protembed.models.heads.run import design_head
from protembed.models.protein_model import ProteinModel


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_modes_follow_the_umask(model: ProteinModel, tmp_path: Path, umask: int, mode: int) -> None:
    head = make_head(design_head(model.card, "residue_classes", outputs=3))
    card = HeadCard(task="x", config=head.config, encoder="x", encoder_sha256="", labels=tuple("HEC"))
    before = os.umask(umask)
    try:
        checkpoint.save(model, tmp_path / "model.safetensors")
        save_head(head, card, tmp_path / "head.safetensors")
        convert_model(
            ModelOptions(model=str(tmp_path / "model.safetensors")), tmp_path / "c.safetensors", overwrite=False
        )
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}
    assert len(list(tmp_path.iterdir())) == 3


def test_a_planted_link_is_not_followed(model: ProteinModel, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    for name in (f".model.safetensors.{os.getpid()}.tmp", ".model.safetensors.tmp"):
        (tmp_path / name).symlink_to(victim)
    checkpoint.save(model, tmp_path / "model.safetensors")
    assert victim.read_text() == "untouched"
    assert not (tmp_path / "model.safetensors").is_symlink()
    checkpoint.load(tmp_path / "model.safetensors", device=torch.device("cpu"))


def test_a_link_at_the_output_keeps_pointing_where_it_does(model: ProteinModel, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "real" / "m.safetensors")
    checkpoint.save(model, tmp_path / "link.safetensors")
    assert (tmp_path / "link.safetensors").is_symlink()
    assert checkpoint.is_native(tmp_path / "real" / "m.safetensors")


def test_a_folder_that_is_not_there_is_one_error(model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"x\.safetensors: cannot be written"):
        convert_model(ModelOptions(model=str(model_file)), tmp_path / "absent" / "x.safetensors", overwrite=False)
