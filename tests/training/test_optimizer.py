"""What an optimizer is given: which weights decay, the rate of every step, clipped gradients, settings on resume."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from protembed.models.protein_model import ProteinModel
from protembed.training.corpus.packing import Cursor
from protembed.training.optimizer import build_optimizers, learning_rate
from protembed.training.pretrain.config import ModelSection, TrainSection, load_config, make_card
from protembed.training.pretrain.pretrain import Trainer
from tests.training.test_pretrain import config_file, trainer_of

__all__ = ["config_file"]

SECTION = TrainSection(out="", steps=10, weight_decay=0.1, betas=(0.8, 0.9), epsilon=1e-7)


def model(**changes: Any) -> ProteinModel:
    return ProteinModel(
        make_card(ModelSection(name="x", d_model=16, n_layers=2, n_heads=2, d_ff=32, stem=3, **changes))
    )


def decay_of_each(optimizer: str, **changes: Any) -> dict[str, float]:
    """Weight decay by name of the weight."""
    built = model(**changes)
    names = {id(parameter): name for name, parameter in built.named_parameters()}
    section = replace(SECTION, optimizer=optimizer)  # type: ignore[arg-type]
    return {
        names[id(parameter)]: group["weight_decay"]
        for one in build_optimizers(built.named_parameters(), section)
        for group in one.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("changes", [{}, {"position": "learned", "max_length": 32, "qk_norm": True}], ids=str)
def test_matrices_decay_and_gains_biases_and_embeddings_do_not(optimizer: str, changes: dict[str, Any]) -> None:
    decays = decay_of_each(optimizer, **changes)
    assert set(decays) == {name for name, _ in model(**changes).named_parameters()}
    for name, decay in decays.items():
        vector = name.endswith(("bias", "norm.weight", "embedding.weight", "positions.weight", "stem.weight"))
        assert decay == (0.0 if vector else 0.1), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_optimizer_has_the_settings_of_the_configuration(optimizer: str) -> None:
    section = replace(SECTION, optimizer=optimizer)  # type: ignore[arg-type]
    for one in build_optimizers(model().named_parameters(), section):
        for group in one.param_groups:
            assert group["lr"] == SECTION.learning_rate
            if isinstance(one, torch.optim.AdamW):
                assert (group["betas"], group["eps"]) == ((0.8, 0.9), 1e-7)


def watch_steps(trainer: Trainer) -> list[tuple[float, float]]:
    """Note rate and total norm of the gradients whenever an optimizer steps."""
    seen: list[tuple[float, float]] = []
    for optimizer in trainer.optimizers:
        true = optimizer.step

        def step(*args: Any, true: Any = true, optimizer: Any = optimizer) -> Any:
            gradients = [p.grad for p in trainer.module.parameters() if p.grad is not None]
            rates = {group["lr"] for group in optimizer.param_groups}
            seen.append((rates.pop(), torch.nn.utils.get_total_norm(gradients).item()))
            assert not rates
            return true(*args)

        optimizer.step = step  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_rate_of_every_step_is_that_of_the_schedule(config_file: Path, optimizer: str) -> None:
    words = [f"train.optimizer={optimizer}", "train.warmup_steps=4", "train.decay=linear", "train.evaluate_every=50"]
    trainer = trainer_of(load_config(config_file, words))
    seen = watch_steps(trainer)
    reports = list(trainer.run())
    wanted = [learning_rate(step, trainer.config.train) for step in range(10)]
    assert len(set(wanted)) == 8
    count = len(trainer.optimizers)
    assert [rate for rate, _ in seen] == [rate for rate in wanted for _ in range(count)]
    assert [report.learning_rate for report in reports] == wanted


def test_gradients_are_clipped_to_the_total_norm(config_file: Path) -> None:
    norms = {}
    for clip in (0.01, 1e9):
        trainer = trainer_of(load_config(config_file, [f"train.clip={clip}"]))
        seen = watch_steps(trainer)
        _, norm, _ = trainer._update(next(trainer.steps.after(Cursor(), 0)), 1e-3, False)
        norms[clip] = (norm, seen[0][1])
    assert norms[0.01][0] == pytest.approx(norms[1e9][0]), "the norm that is reported is the one before"
    assert norms[1e9][1] == pytest.approx(norms[1e9][0], rel=1e-5)
    assert norms[1e9][1] > 0.1
    assert norms[0.01][1] == pytest.approx(0.01, rel=1e-3)


CHANGES = {
    "train.weight_decay": (0.3, "weight_decay"),
    "train.betas": ([0.5, 0.6], "betas"),
    "train.epsilon": (1e-3, "eps"),
}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_that_is_changed_on_resume_is_applied_and_said(
    config_file: Path, tmp_path: Path, name: str, optimizer: str
) -> None:
    value, field = CHANGES[name]
    words = [f"train.optimizer={optimizer}"]
    list(trainer_of(load_config(config_file, [*words, "train.steps=5"])).run())
    again = trainer_of(load_config(config_file, [*words, f"{name}={value}"]))
    groups = [group for one in again.optimizers for group in one.param_groups]
    found = [list(group[field]) if field == "betas" else group[field] for group in groups if field in group]
    assert value in found
    if field == "weight_decay":
        assert sorted({*found}) == [0.0, 0.3], "gains and biases still do not decay"
    else:
        assert all(one == value for one in found if not (field == "eps" and optimizer == "muon" and one == 1e-7))
    assert f"[train] {name.partition('.')[2]} " in again.introduce()
    first = next(again.run())
    assert name.partition(".")[2] in first.warning
    states = [value for one in again.optimizers for state in one.state.values() for value in state.values()]
    assert any(isinstance(state, Tensor) and state.abs().max() > 0 for state in states), "moments are kept"


def test_settings_that_did_not_change_are_not_spoken_of(config_file: Path) -> None:
    list(trainer_of(load_config(config_file, ["train.steps=10"])).run())
    again = trainer_of(load_config(config_file, ["train.threads=1"]))
    assert again.changes == []
    assert "from here on" not in again.introduce()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("train.learning_rate=5e-3", "learning_rate 0.01 -> 0.005"),
        ("train.final_learning_rate=1e-3", "final_learning_rate"),
        ("train.warmup_steps=3", "warmup_steps 2 -> 3"),
        ("train.decay=linear", "decay cosine -> linear"),
        ("train.decay_share=0.5", "decay_share"),
        ("train.clip=0.5", "clip 1.0 -> 0.5"),
        ("train.steps=20", "steps 10 -> 20"),
        ("train.accumulate=2", "accumulate 1 -> 2"),
        ("train.precision=bfloat16", "precision float32 -> bfloat16"),
        ("parallel.activation_checkpointing=true", "[parallel] activation_checkpointing False -> True"),
    ],
)
def test_every_other_setting_that_is_applied_is_said(config_file: Path, word: str, said: str) -> None:
    list(trainer_of(load_config(config_file)).run())
    assert said in trainer_of(load_config(config_file, [word])).introduce()


def test_fresh_residual_outputs_are_scaled_by_depth() -> None:
    """GPT-2: N(0, 0.02) for all, divided by sqrt(2 n_layers) where a block adds to its input."""
    for layers in (2, 8):
        section = ModelSection(name="x", d_model=64, n_layers=layers, n_heads=2, d_ff=128)
        fresh = ProteinModel(make_card(section))
        fresh.initialise(0)
        for name, parameter in fresh.named_parameters():
            if parameter.ndim < 2:
                assert set(parameter.unique().tolist()) == ({1.0} if "norm" in name and "weight" in name else {0.0})
                continue
            deep = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
            wanted = 0.02 / math.sqrt(2 * layers) if deep else 0.02
            assert parameter.std().item() == pytest.approx(wanted, rel=0.06), name
            assert abs(parameter.mean().item()) < 0.002


def test_a_fresh_model_depends_on_its_seed() -> None:
    weights = []
    for seed in (0, 0, 1):
        fresh = model()
        fresh.initialise(seed)
        weights.append(fresh.encoder.blocks[0].attention.qkv.weight.clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_warm_up_plateau_and_decay_of_decay_steps() -> None:
    section = TrainSection(out="", steps=100, warmup_steps=10, learning_rate=1.0, decay="linear", decay_steps=20)
    rates = [learning_rate(step, section) for step in range(100)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert set(rates[10:81]) == {1.0}
    assert rates[80:] == pytest.approx(np.arange(20, 0, -1) / 20)
    short = replace(section, steps=25)
    assert [learning_rate(step, short) for step in range(10, 25)] == pytest.approx(np.arange(15, 0, -1) / 15)
