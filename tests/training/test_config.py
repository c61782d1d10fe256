"""Nonsense in what a run is given: one clear error each, no hang and no memory for ever."""

import json
from pathlib import Path
from typing import Any

import pytest

from protembed.errors import TrainingError, UsageError
from protembed.training.checkpoints import list_checkpoints
from protembed.training.pretrain.config import load_config
from tests.training.test_pretrain import config_file, trainer_of

__all__ = ["config_file"]

DIGITS = "9" * 5000


@pytest.mark.parametrize(
    "text",
    [
        f"[train]\nsteps = {DIGITS}\n",
        f"[model]\nname = {'[' * 100_000}{']' * 100_000}\n",
        f"{'a.' * 50_000}b = 1\n",
        "[train]\nsteps = 1\n[train]\nsteps = 2\n",
        "\x00",
        "train = [",
    ],
    ids=["digits", "nested", "dotted", "twice", "nul", "cut"],
)
def test_a_file_of_nonsense(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"a\.toml"):
        load_config(path)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe[train]")
    with pytest.raises(UsageError, match="not TOML"):
        load_config(tmp_path / "a.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.n_layers=1_000_000_000", "n_layers is 1000000000, not 1,000 or less"),
        ("model.d_model=1_000_000_000", "d_model is 1000000000"),
        ("model.d_ff=1_000_000_000", "d_ff is 1000000000"),
        ("model.stem=999_999_999", "stem is 999999999"),
        ("model.stem=-3", "stem is -3, not 0 or more"),
        ("model.max_length=999_999_999_999", "max_length is 999999999999"),
        ("model.norm_eps=inf", "norm_eps is inf"),
        ("data.max_residues=999_999_999_999", "max_residues is 999999999999"),
        ("train.batch_tokens=999_999_999_999", "batch_tokens is 999999999999"),
        ("train.accumulate=999_999_999", "accumulate is 999999999"),
        ("train.steps=9_999_999_999_999_999", "steps is 9999999999999999"),
        ("train.learning_rate=inf", "learning_rate is inf"),
        ("train.weight_decay=inf", "weight_decay is inf"),
        ("train.seed=99999999999999999999", "no number that can be meant"),
        ("train.learning_rate=99999999999999999999999", "learning_rate is 9+, not float"),
        (f"train.steps={DIGITS}", r"steps is '9+\.\.\., not int"),
        (f"train.out={'[' * 50_000}", r"out|unknown|not"),
        ("model.activation=['gelu']", "activation is \\['gelu'\\], not one of"),
        ("model.activation=1", "activation is 1, not one of"),
        ("model.norm={}", "norm is {}, not one of"),
        ("train.betas=[[1], 2]", "betas holds \\[1\\], not float"),
        ("model.name=3", "name is 3, not str"),
    ],
)
def test_values_out_of_bounds(config_file: Path, word: str, message: str) -> None:
    if word.startswith("train.out="):
        assert load_config(config_file, [word]).train.out.startswith("[[")  # a bare word is a text
        return
    with pytest.raises(UsageError, match=message) as error:
        load_config(config_file, [word])
    assert len(str(error.value)) < 600


def test_sections_that_are_none(config_file: Path) -> None:
    for text in ("model = 1", "[[model]]\nname = 'x'"):
        config_file.write_text(text)
        with pytest.raises(UsageError, match="model is no section"):
            load_config(config_file)


NONSENSE: list[Any] = [
    None,
    [],
    "text",
    {},
    {"progress": 1, "config": {}},
    {"config": []},
    {"progress": {"step": "5"}},
    {"progress": {"step": -5}},
    {"progress": {"step": 10**30}},
    {"progress": {"step": True}},
    {"progress": {"step": 4}},
    {"progress": {"tokens": 1.5}},
    {"progress": {"seconds": float("nan")}},
    {"progress": {"seconds": float("inf")}},
    {"progress": {"seconds": "long"}},
    {"progress": {"cursor": 3}},
    {"progress": {"cursor": {"epoch": -1, "used": 0}}},
    {"progress": {"cursor": {"epoch": 0, "used": 10**40}}},
    {"config": {"model": 3}},
    {"config": {"train": "none"}},
    {"config": {"data": []}},
]


@pytest.mark.parametrize("nonsense", NONSENSE, ids=str)
def test_a_checkpoint_of_nonsense(config_file: Path, tmp_path: Path, nonsense: Any) -> None:
    """Whatever stands in progress.json: the checkpoint is named as damaged, or as another run's."""
    list(trainer_of(load_config(config_file, ["train.steps=5"])).run())
    path = list_checkpoints(tmp_path / "run")[-1] / "progress.json"
    saved = json.loads(path.read_text())
    if isinstance(nonsense, dict) and nonsense:
        for section, values in nonsense.items():
            saved[section] = {**saved[section], **values} if isinstance(values, dict) else values
    else:
        saved = nonsense
    path.write_text(json.dumps(saved))
    with pytest.raises(TrainingError, match="step_00000005") as error:
        trainer_of(load_config(config_file))
    assert error.value.hint


@pytest.mark.parametrize(
    "text", ["[" * 100_000, f'{{"progress": {DIGITS}}}', "\xff"], ids=["nested", "digits", "bytes"]
)
def test_a_checkpoint_that_is_no_json(config_file: Path, tmp_path: Path, text: str) -> None:
    list(trainer_of(load_config(config_file, ["train.steps=5"])).run())
    (tmp_path / "run" / "step_00000005" / "progress.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(TrainingError, match=r"progress\.json: cannot be read"):
        trainer_of(load_config(config_file))


def test_settings_of_the_saved_schedule_that_make_no_sense(config_file: Path, tmp_path: Path) -> None:
    list(trainer_of(load_config(config_file, ["train.steps=5"])).run())
    path = tmp_path / "run" / "step_00000005" / "progress.json"
    saved = json.loads(path.read_text())
    for value in ("many", -4, [1]):
        saved["config"]["train"]["warmup_steps"] = value
        path.write_text(json.dumps(saved))
        with pytest.raises(TrainingError, match="makes no sense"):
            trainer_of(load_config(config_file, ["train.decay_steps=3"]))
