"""The recipes of configs/: each loads, is of the published size, and trains when it is made small."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from protembed.models.protein_model import skeleton
from protembed.sequences.alphabet import PROTEMBED
from protembed.training.corpus.corpus import prepare_corpus
from protembed.training.launch import Launch
from protembed.training.parallel import join
from protembed.training.pretrain.config import load_config, make_card
from protembed.training.pretrain.forecast import count_parameters
from protembed.training.pretrain.pretrain import Trainer
from tests.conftest import ROOT, SEQUENCES, write_fasta

RECIPES = sorted((ROOT / "configs").glob("*.toml"))

PUBLISHED = {
    "esm2-8m": 7_512_474,
    "esm2-35m": 33_501_394,
    "esm2-150m": 148_140_154,
    "esm2-650m": 651_043_254,
    "esm2-3b": 2_839_005_634,
    "proteinlm-200m": 204_952_704,
}
"""Weights of the published models: ESM-2 as transformers' EsmForMaskedLM has them, contact regression included;
ProteinLM with its vocabulary padded to 128 rows. ProteinLM-3B's shape is not published."""

SMALL = """
model.n_layers=1
model.d_model=32
model.n_heads=2
model.d_ff=64
train.steps=2
train.batch_tokens=600
train.accumulate=1
train.warmup_steps=1
train.device=cpu
train.threads=1
train.start_from=""
parallel.compile=false
train.evaluate_every=2
train.evaluate_proteins=2
parallel.strategy=ddp
"""

HIT = "sp|P69905|HBA_HUMAN\tsp|P01308|INS_HUMAN\t0.250\t1\t8\t1\t8\t1E-5\t8M\n"


def test_the_recipes_are_all_there() -> None:
    assert {*PUBLISHED, "proteinlm-3b"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_of_the_published_size(path: Path) -> None:
    config = load_config(path)
    parameters = count_parameters(skeleton(make_card(config.model)))
    if path.stem in PUBLISHED:
        assert config.model.name == path.stem
        assert parameters == pytest.approx(PUBLISHED[path.stem], rel=0.02)
    if path.stem == "proteinlm-3b":
        assert 2.7e9 < parameters < 3.3e9


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_fits_its_positions(path: Path) -> None:
    config = load_config(path)
    card = make_card(config.model)
    assert card.max_residues is None or config.data.max_residues <= card.max_residues
    assert config.data.max_residues + 2 <= config.train.batch_tokens
    assert config.train.final_learning_rate < config.train.learning_rate
    assert config.train.warmup_steps < config.train.steps


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_made_small_trains(path: Path, tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "train.fasta", SEQUENCES)
    held_out = write_fasta(tmp_path / "valid.fasta", {"a": "MKTAYIAKQRQISFVKSHFSRQ", "b": "MLKQVEIFTDGSCLGNPG"})
    folders = [f"data.corpus={tmp_path}/corpus", f"train.out={tmp_path}/run"]
    sources = [f"data.train=['{fasta}']", f"data.valid=['{held_out}']"]
    config = load_config(path, [*SMALL.split(), *folders, *sources])
    if config.objective.profile:
        hits = tmp_path / "hits.tsv"
        hits.write_text(HIT)
        prepare_corpus([str(fasta)], tmp_path / "corpus", PROTEMBED, valid=[str(held_out)], homologs=[str(hits)])
        config = replace(config, data=replace(config.data, train=(), valid=()))
    with join(Launch(), config.train.device) as world:
        trainer = Trainer(config, world)
        (report,) = trainer.run()
    assert report.step == 2
    assert math.isfinite(report.loss)
    assert report.valid_perplexity is not None
    assert trainer.result.exists()
