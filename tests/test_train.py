"""Pretraining: masking, packing, exact resume, and a loss that falls."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import protembed
from protembed.alphabet import PROTEMBED, STANDARD_RESIDUES
from protembed.errors import TrainingError, UsageError
from protembed.train.config import MaskSection, PretrainConfig, TrainSection, load_config
from protembed.train.data import Cursor, Packing, TokenStore, prepare
from protembed.train.evaluation import perplexity, protein_losses
from protembed.train.masking import hide_groups, mask_tokens
from protembed.train.optimizer import learning_rate
from protembed.train.trainer import Trainer
from tests.conftest import SEQUENCES, Run, write_fasta

TOML = """
[model]
name = "tiny"
d_model = 32
n_layers = 2
n_heads = 4
d_ff = 64
[data]
train = ["{folder}/train.fasta"]
valid = ["{folder}/train.fasta"]
cache = "{folder}/cache"
max_residues = 100
[train]
out = "{folder}/run"
steps = 10
batch_tokens = 300
learning_rate = 1e-2
warmup_steps = 2
device = "cpu"
log_every = 1
evaluate_every = 5
evaluate_proteins = 3
checkpoint_every = 5
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    write_fasta(tmp_path / "train.fasta", SEQUENCES)
    path = tmp_path / "run.toml"
    path.write_text(TOML.format(folder=tmp_path))
    return path


def store_of(*lengths: int) -> TokenStore:
    residues = np.random.default_rng(0).choice(PROTEMBED.standard_ids, sum(lengths)).astype(np.uint8)
    return TokenStore(tokens=residues, offsets=np.cumsum([0, *lengths]))


def packing(store: TokenStore, **changes: int) -> Packing:
    fields = {"batch_tokens": 120, "max_residues": 50, "seed": 0, **changes}
    return Packing(store=store, alphabet=PROTEMBED, **fields)


class TestMasking:
    tokens = PROTEMBED.encode("".join(SEQUENCES.values()) * 50 + "XBZUO" * 100)
    masked = mask_tokens(tokens, PROTEMBED, MaskSection(), np.random.default_rng(0))

    def test_shares(self) -> None:
        standard = np.isin(self.tokens, PROTEMBED.standard_ids).sum()
        count = len(self.masked.places)
        assert count == round(0.15 * standard)
        seen = self.masked.tokens[self.masked.places]
        hidden = seen == PROTEMBED.mask_id
        kept = seen == self.masked.targets
        assert math.isclose(hidden.mean(), 0.8, abs_tol=0.02)
        assert math.isclose(kept.mean(), 0.1 + 0.1 / 20, abs_tol=0.02)

    def test_specials_and_ambiguous_letters_are_neither_chosen_nor_drawn(self) -> None:
        assert np.isin(self.masked.targets, PROTEMBED.standard_ids).all()
        drawn = self.masked.tokens[self.masked.places]
        assert np.isin(drawn[drawn != PROTEMBED.mask_id], PROTEMBED.standard_ids).all()

    def test_other_places_are_untouched(self) -> None:
        others = np.ones(len(self.tokens), bool)
        others[self.masked.places] = False
        assert (self.masked.tokens[others] == self.tokens[others]).all()
        assert (self.tokens[self.masked.places] == self.masked.targets).all()

    def test_groups_hide_every_residue_once(self) -> None:
        tokens = PROTEMBED.encode(SEQUENCES["sp|P01308|INS_HUMAN"] + "X")
        groups = hide_groups(tokens, PROTEMBED, np.random.default_rng(0))
        places = np.concatenate([group.places for group in groups])
        assert sorted(places) == list(range(1, len(tokens) - 2))
        assert all((group.tokens[group.places] == PROTEMBED.mask_id).all() for group in groups)


class TestPacking:
    def test_an_epoch_has_every_protein_once_whole(self) -> None:
        store = store_of(30, 10, 40, 20, 50, 5, 35)
        drawn: list[bytes] = []
        for batch, cursor in packing(store).batches(Cursor()):
            assert sum(len(protein) for protein in batch) <= 120
            assert all((protein[0], protein[-1]) == (2, 3) for protein in batch)
            drawn += [protein[1:-1].astype(np.uint8).tobytes() for protein in batch]
            if cursor.epoch == 3:
                break
        whole = sorted(store[index].tobytes() for index in range(len(store)))
        for epoch in range(3):
            assert sorted(drawn[epoch * len(store) : (epoch + 1) * len(store)]) == whole

    def test_a_cursor_goes_on_exactly(self) -> None:
        stream = packing(store_of(*range(5, 60))).batches(Cursor())
        batches = [next(stream) for _ in range(40)]
        for number in (0, 7, 25):
            again = packing(store_of(*range(5, 60))).batches(batches[number][1])
            for expected, _ in batches[number + 1 : number + 6]:
                found, _ = next(again)
                assert [p.tobytes() for p in found] == [p.tobytes() for p in expected]

    def test_long_proteins_give_windows_that_change_with_the_epoch(self) -> None:
        store = store_of(500)
        stream = packing(store).batches(Cursor())
        windows = [protein[1:-1].astype(np.uint8).tobytes() for _ in range(3) for protein in next(stream)[0]]
        assert all(len(window) == 50 and window in store[0].tobytes() for window in windows)
        assert len(set(windows)) > 1

    def test_ranks_share_an_epoch(self) -> None:
        store = store_of(*[20] * 40)
        halves = []
        for rank in (0, 1):
            stream = packing(store, rank=rank, ranks=2).batches(Cursor())
            halves.append([p.tobytes() for _ in range(4) for p in next(stream)[0]])
        assert len(set(halves[0]) & set(halves[1])) == 0
        assert len(halves[0]) == len(halves[1]) == 20


def test_prepare_is_done_once_and_again_when_the_source_changes(tmp_path: Path) -> None:
    source = write_fasta(tmp_path / "a.fasta", SEQUENCES)
    store = prepare([str(source)], tmp_path / "store", PROTEMBED)
    assert [PROTEMBED.decode(store[index]) for index in range(len(store))] == list(SEQUENCES.values())
    stamp = (tmp_path / "store" / "tokens.bin").stat().st_mtime_ns
    prepare([str(source)], tmp_path / "store", PROTEMBED)
    assert (tmp_path / "store" / "tokens.bin").stat().st_mtime_ns == stamp
    write_fasta(source, {"a": "MKTA"})
    assert len(prepare([str(source)], tmp_path / "store", PROTEMBED)) == 1
    with pytest.raises(TrainingError, match="no such file"):
        prepare([str(tmp_path / "gone")], tmp_path / "store", PROTEMBED)


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_learning_rate_warms_up_and_decays(decay: str) -> None:
    section = TrainSection(
        out="",
        steps=100,
        warmup_steps=10,
        learning_rate=1.0,
        final_learning_rate=0.1,
        decay=decay,  # type: ignore[arg-type]
    )
    rates = [learning_rate(step, section) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert all(left >= right for left, right in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.1)


class TestConfig:
    def test_overrides(self, config_file: Path) -> None:
        config = load_config(config_file, ["train.steps=7", "train.device=cuda", "mask.rate=0.2"])
        assert (config.train.steps, config.train.device, config.mask.rate) == (7, "cuda", 0.2)

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("train.stepz=1", "unknown key 'stepz'"),
            ("trian.steps=1", "unknown key 'trian'"),
            ("steps=1", "not of the form"),
            ("train.steps", "not of the form"),
            ("train.steps=many", "steps is 'many', not int"),
            ("train.steps=true", "steps is True, not int"),
            ("train.optimizer=sgd", "optimizer is 'sgd', not one of adamw, muon"),
            ("data.train=[1]", "train holds 1, not str"),
        ],
    )
    def test_mistakes_are_named(self, config_file: Path, override: str, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            load_config(config_file, [override])

    def test_not_toml(self, tmp_path: Path) -> None:
        (tmp_path / "a.toml").write_text("model = [")
        with pytest.raises(UsageError, match="not TOML"):
            load_config(tmp_path / "a.toml")


def losses(config: PretrainConfig) -> list[float]:
    return [report.loss for report in Trainer(config).run()]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_loss_falls(config_file: Path, optimizer: str) -> None:
    found = losses(load_config(config_file, ["train.steps=60", f"train.optimizer={optimizer}"]))
    assert np.mean(found[-10:]) < np.mean(found[:5]) - 0.2


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_five_and_five_steps_equal_ten(config_file: Path, tmp_path: Path, optimizer: str) -> None:
    """Stopped after the checkpoint at step 5 and started again: the same bits as an undisturbed run."""
    words = [f"train.optimizer={optimizer}"]
    undisturbed = losses(load_config(config_file, words))
    disturbed = load_config(config_file, [*words, f"train.out={tmp_path}/second"])
    first = []
    for report in Trainer(disturbed).run():
        first.append(report.loss)
        if report.step == 7:
            break
    assert first == undisturbed[:7]
    assert losses(disturbed) == undisturbed[5:]
    one, two = (protembed.load(tmp_path / run / "model.safetensors").card.sha256 for run in ("run", "second"))
    assert one == two


def test_accumulation_equals_a_large_batch(config_file: Path, tmp_path: Path) -> None:
    """The gradient is the mean over all masked residues of a step, however they are divided."""
    trainer = Trainer(load_config(config_file, ["train.batch_tokens=400", "train.accumulate=2"]))
    batches, _ = trainer._take(Packing.batches(packing(trainer.store, batch_tokens=400, max_residues=100), Cursor()))
    trainer.config = load_config(config_file, ["train.clip=1e9"])
    loss, norm = trainer._step(batches, 0.0)
    again = Trainer(load_config(config_file, [f"train.out={tmp_path}/other", "train.clip=1e9"]))
    parts = []
    for number, batch in enumerate(batches):
        rng = np.random.default_rng((0, 0, number))
        question = mask_tokens(batch.tokens, PROTEMBED, MaskSection(), rng)
        offset = sum(batches[i].tokens.size for i in range(number))
        parts.append((question, offset))
    tokens = torch.from_numpy(np.concatenate([question.tokens for question, _ in parts]))
    places = torch.from_numpy(np.concatenate([question.places + offset for question, offset in parts]))
    targets = torch.from_numpy(np.concatenate([question.targets for question, _ in parts]))
    from protembed.layout import Packed

    lengths = [length for batch in batches for length in batch.lengths]
    hidden = again.model(tokens, Packed(lengths))[places]
    whole = torch.nn.functional.cross_entropy(again.model.logits(hidden), targets)
    whole.backward()  # type: ignore[no-untyped-call]
    expected = torch.nn.utils.get_total_norm([p.grad for p in again.model.parameters() if p.grad is not None])
    assert loss == pytest.approx(whole.item(), abs=1e-5)
    assert norm == pytest.approx(expected.item(), abs=1e-5)


def test_a_run_writes_metrics_and_a_native_model(config_file: Path, tmp_path: Path) -> None:
    reports = list(Trainer(load_config(config_file)).run())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [report.step for report in reports] == list(range(1, 11))
    assert [line["step"] for line in lines if line["valid_perplexity"] is not None] == [5, 10]
    assert protembed.load(tmp_path / "run" / "model.safetensors").card.name == "tiny"


def test_a_half_written_checkpoint_is_not_chosen(config_file: Path, tmp_path: Path) -> None:
    config = load_config(config_file)
    list(Trainer(config).run())
    half = tmp_path / "run" / ".step_00000099.tmp"
    half.mkdir()
    (half / "model.safetensors").write_text("half")
    assert Trainer(config).progress.step == 10


def test_another_model_does_not_go_on_with_a_run(config_file: Path) -> None:
    list(Trainer(load_config(config_file)).run())
    with pytest.raises(TrainingError, match=r"another \[model\]"):
        Trainer(load_config(config_file, ["model.n_layers=3"]))


def test_a_loss_that_is_not_a_number_stops_the_run(config_file: Path) -> None:
    trainer = Trainer(load_config(config_file))
    with torch.no_grad():
        trainer.model.encoder.embedding.weight[5] = math.nan
    with pytest.raises(TrainingError, match="not a number at step 1"):
        list(trainer.run())


def test_perplexity_of_a_model_that_knows_nothing_is_the_vocabulary(config_file: Path) -> None:
    trainer = Trainer(load_config(config_file))
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.zero_()
    proteins = [PROTEMBED.encode(sequence) for sequence in SEQUENCES.values()]
    found = list(protein_losses(trainer.model, proteins))
    assert perplexity(found) == pytest.approx(len(PROTEMBED), rel=1e-5)
    standard = sum(letter in STANDARD_RESIDUES for sequence in SEQUENCES.values() for letter in sequence)
    assert sum(item.count for item in found) == standard


def test_pretrain_command(run: Run, config_file: Path, tmp_path: Path, fasta: Path) -> None:
    result = run("pretrain", "--config", config_file, "--set", "train.steps=6")
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert "6 of" not in result.stdout
    assert (tmp_path / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")
    again = run("embed", fasta, "-m", tmp_path / "run" / "model.safetensors", "-o", "out.h5")
    assert again.returncode == 0, again.stderr
    wrong = run("pretrain", "--config", config_file, "--set", "train.stepz=6")
    assert wrong.returncode == 2
    assert "unknown key 'stepz'" in wrong.stderr
