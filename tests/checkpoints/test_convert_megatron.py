"""ProteinLM's pretraining checkpoints: where their files lie, what they may leave out, how their rows are ordered."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from protembed.checkpoints.foreign.megatron import order_rows
from protembed.errors import ModelError
from tests.checkpoints.test_convert import load
from tests.conftest import GOLDEN

RANK = Path("release/mp_rank_00/model_optim_rng.pt")


@pytest.fixture
def megatron(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "proteinlm_megatron", tmp_path / "proteinlm"))


def edit_rank(folder: Path, change: Callable[[dict[str, Any]], object], file: Path = RANK) -> None:
    """Change what a Megatron file holds."""
    content = torch.load(folder / file, weights_only=False)
    change(content)
    torch.save(content, folder / file)


@pytest.mark.parametrize("inside", ["", "release", "release/mp_rank_00", str(RANK)])
def test_megatron_is_found_from_any_of_its_folders(megatron: Path, inside: str) -> None:
    assert load(megatron / inside).card.name == "proteinlm"


def test_megatron_file_by_another_name(megatron: Path, tmp_path: Path) -> None:
    shutil.copyfile(megatron / RANK, tmp_path / "weights.pt")
    assert load(tmp_path / "weights.pt").card.sha256 == load(megatron).card.sha256


def test_megatron_without_options_asks_for_the_heads(megatron: Path) -> None:
    edit_rank(megatron, lambda content: (content.pop("args"), content.pop("checkpoint_version")))
    with pytest.raises(ModelError) as caught:
        load(megatron, checkpoint_version=3.0)
    assert "n_heads=" in caught.value.hint
    assert "--n-heads" in caught.value.hint
    with pytest.warns(UserWarning, match="read as version 0.*--checkpoint-version"):
        load(megatron, n_heads=4)


def test_megatron_lacks_a_part(megatron: Path) -> None:
    edit_rank(megatron, lambda content: setattr(content["args"], "tensor_model_parallel_size", 2))
    with pytest.raises(ModelError, match="2 x 1 ranks, and files of 1 x 1"):
        load(megatron)


def test_replicated_copies_must_agree(megatron: Path) -> None:
    def split(content: dict[str, Any]) -> None:
        content["args"].tensor_model_parallel_size = 2

    edit_rank(megatron, split)
    shutil.copytree(megatron / "release/mp_rank_00", megatron / "release/mp_rank_01")
    second = Path("release/mp_rank_01/model_optim_rng.pt")
    edit_rank(megatron, lambda c: c["model"]["lm_head"]["dense.bias"].add_(1), second)
    # Two equal halves make a model twice as wide inside; only the disagreement is looked at here.
    with pytest.raises(ModelError, match="is not the same in all tensor-parallel parts"):
        load(megatron)


def test_tracker_names_a_folder_that_is_not_there(megatron: Path) -> None:
    (megatron / "latest_checkpointed_iteration.txt").write_text("20")
    with pytest.raises(ModelError, match="iter_0000020 is not there"):
        load(megatron)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("version", [0.0, 1.0, 2.0, 3.0])
def test_order_of_fused_rows(version: float, parts: int) -> None:
    heads, size = 4, 3
    wanted = torch.arange(3 * heads * size).view(3, heads, size)
    if version < 1:
        files = torch.cat([part.flatten() for part in torch.split(wanted, heads // parts, dim=1)])
    elif version < 2:
        files = wanted.permute(1, 2, 0).flatten()
    else:
        files = wanted.permute(1, 0, 2).flatten()
    assert order_rows([files], version=version, n_heads=heads, parts=parts).equal(wanted.flatten())
