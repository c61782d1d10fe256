"""Pretraining: masking, packing, exact resume, and a loss that falls."""

import errno
import itertools
import json
import math
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import protembed
from protembed.checkpoints import native as checkpoint
from protembed.errors import DependencyError, OutputError, ProtembedError, TrainingError, UsageError
from protembed.models import packing as layout
from protembed.models.packing import Packed
from protembed.sequences.alphabet import PROTEMBED, STANDARD_RESIDUES
from protembed.training.checkpoints import list_checkpoints
from protembed.training.corpus.packing import Cursor, Packing, TokenStore
from protembed.training.launch import Launch
from protembed.training.optimizer import learning_rate
from protembed.training.parallel import World, join
from protembed.training.pretrain.batches import Shape
from protembed.training.pretrain.config import (
    MaskSection,
    ModelSection,
    ParallelSection,
    PretrainConfig,
    TrainSection,
    load_config,
    make_card,
)
from protembed.training.pretrain.growth import can_grow
from protembed.training.pretrain.masking import hide_groups, mask_tokens
from protembed.training.pretrain.objective import ahead
from protembed.training.pretrain.perplexity import ProteinLoss, perplexity, protein_losses
from protembed.training.pretrain.pretrain import Trainer
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
corpus = "{folder}/corpus"
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
    return TokenStore.of(np.split(residues, np.cumsum(lengths)[:-1]))


def packing(store: TokenStore, **changes: int) -> Packing:
    fields = {"batch_tokens": 120, "max_residues": 50, "seed": 0, **changes}
    return Packing(store=store, alphabet=PROTEMBED, **fields)


def trainer_of(config: PretrainConfig) -> Trainer:
    """The only process of a run."""
    return Trainer(config, World(launch=Launch(), device=torch.device("cpu")))


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

    def test_where_nothing_can_be_asked_nothing_is(self) -> None:
        tokens = PROTEMBED.encode("XXXX")
        masked = mask_tokens(tokens, PROTEMBED, MaskSection(), np.random.default_rng(0))
        assert len(masked.places) == len(masked.targets) == 0
        assert (masked.tokens == tokens).all()

    def test_of_a_short_protein_at_least_one_residue_is_chosen(self) -> None:
        masked = mask_tokens(PROTEMBED.encode("MK"), PROTEMBED, MaskSection(rate=0.01), np.random.default_rng(0))
        assert len(masked.places) == 1

    def test_groups_are_a_seventh_each(self) -> None:
        groups = hide_groups(PROTEMBED.encode("MKTAYIAKQR" * 3), PROTEMBED, np.random.default_rng(0))
        assert [len(group.places) for group in groups] == [5, 5, 4, 4, 4, 4, 4]

    def test_groups_hide_every_residue_once(self) -> None:
        tokens = PROTEMBED.encode(SEQUENCES["sp|P01308|INS_HUMAN"] + "X")
        groups = hide_groups(tokens, PROTEMBED, np.random.default_rng(0))
        places = np.concatenate([group.places for group in groups])
        assert sorted(places) == list(range(1, len(tokens) - 2))
        assert all((group.tokens[group.places] == PROTEMBED.mask_id).all() for group in groups)


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
            ("train.betas=[0.9]", "not 2 values"),
            ("train.betas=[0.9, 1.0]", "betas are"),
            ("train.steps=0", "steps is 0, not 1 or more"),
            ("train.batch_tokens=0", "batch_tokens is 0"),
            ("train.accumulate=-1", "accumulate is -1"),
            ("train.log_every=0", "log_every is 0"),
            ("train.evaluate_every=0", "evaluate_every is 0"),
            ("train.evaluate_proteins=0", "evaluate_proteins is 0"),
            ("train.checkpoint_every=0", "checkpoint_every is 0"),
            ("train.keep_checkpoints=0", "keep_checkpoints is 0"),
            ("train.warmup_steps=-1", "warmup_steps is -1, not 0 or more"),
            ("train.threads=-1", "threads is -1"),
            ("train.seed=-1", "seed is -1"),
            ("train.weight_decay=nan", "weight_decay is nan"),
            ("train.learning_rate=0", "learning_rate is 0.0, not above 0"),
            ("train.clip=0", "clip is 0.0, not above 0"),
            ("train.decay_share=1.5", "decay_share is 1.5, not between 0 and 1"),
            ("mask.rate=0", r"\[mask\]: rate is 0.0, not above 0"),
            ("mask.rate=1.5", "rate is 1.5"),
            ("mask.random=0.3", "together more than 1"),
            ("data.max_residues=0", "max_residues is 0"),
            ("model.n_heads=0", "n_heads is 0"),
            ("model.max_length=101", "102 tokens, and .* max_length is 101"),
        ],
    )
    def test_mistakes_are_named(self, config_file: Path, override: str, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            load_config(config_file, [override])

    def test_a_protein_fits_into_the_one_shape_of_compiled_batches(self, config_file: Path) -> None:
        words = ["train.batch_tokens=101"]
        assert load_config(config_file, words).train.batch_tokens == 101
        with pytest.raises(UsageError, match=r"run.toml: \[train\] batch_tokens is 101"):
            load_config(config_file, [*words, "parallel.compile=true"])

    def test_a_key_outside_of_sections(self, config_file: Path) -> None:
        config_file.write_text("train = 3\n")
        with pytest.raises(UsageError, match="train is no section"):
            load_config(config_file, ["train.steps=1"])

    def test_not_toml(self, tmp_path: Path) -> None:
        (tmp_path / "a.toml").write_text("model = [")
        with pytest.raises(UsageError, match="not TOML"):
            load_config(tmp_path / "a.toml")


def losses(config: PretrainConfig) -> list[float]:
    return [report.loss for report in trainer_of(config).run()]


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
    trainer = trainer_of(disturbed)
    for report in trainer.run():
        first.append(report.loss)
        if report.step == 7:
            trainer.checkpoints.finish()  # it is written in the background, which takes longer than two steps here
            break
    assert first == undisturbed[:7]
    assert losses(disturbed) == undisturbed[5:]
    one, two = (protembed.load(tmp_path / run / "model.safetensors").card.sha256 for run in ("run", "second"))
    assert one == two


def test_accumulation_equals_a_large_batch(config_file: Path) -> None:
    """The gradient is the mean over all masked residues of a step, however they are divided."""
    trainer = trainer_of(load_config(config_file, ["train.accumulate=2", "train.clip=1e9"]))
    step = next(trainer.steps.after(Cursor(), 0))
    assert len(step.batches) == 2
    parts = [batch.on(torch.device("cpu")) for batch in step.batches]
    shift = len(parts[0][0])
    whole = torch.nn.functional.cross_entropy(
        trainer.module.model.logits(
            trainer.module.model(
                torch.cat([part[0] for part in parts]), Packed([n for batch in step.batches for n in batch.lengths])
            )[torch.cat([parts[0][2], parts[1][2] + shift])]
        ),
        torch.cat([part[3] for part in parts]),
    )
    whole.backward()  # type: ignore[no-untyped-call]
    expected = torch.nn.utils.get_total_norm([p.grad for p in trainer.module.parameters() if p.grad is not None])
    trainer.module.zero_grad()
    (loss, _), norm, _ = trainer._update(step, 0.0, False)
    assert loss == pytest.approx(whole.item(), abs=1e-5)
    assert norm == pytest.approx(expected.item(), abs=1e-5)


def test_a_run_writes_metrics_and_a_native_model(config_file: Path, tmp_path: Path) -> None:
    reports = list(trainer_of(load_config(config_file)).run())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [report.step for report in reports] == list(range(1, 11))
    assert [line["step"] for line in lines if line["valid_perplexity"] is not None] == [5, 10]
    assert protembed.load(tmp_path / "run" / "model.safetensors").card.name == "tiny"


def test_a_half_written_checkpoint_is_not_chosen(config_file: Path, tmp_path: Path) -> None:
    config = load_config(config_file)
    list(trainer_of(config).run())
    half = tmp_path / "run" / ".step_00000099.tmp"
    half.mkdir()
    (half / "model.safetensors").write_text("half")
    assert trainer_of(config).progress.step == 10


def test_a_copy_of_a_checkpoint_is_not_chosen(config_file: Path, tmp_path: Path) -> None:
    list(trainer_of(load_config(config_file)).run())
    shutil.copytree(tmp_path / "run" / "step_00000005", tmp_path / "run" / "step_00000010.old")
    shutil.copytree(tmp_path / "run" / "step_00000005", tmp_path / "run" / "step_best")
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step_00000005", "step_00000010"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.n_layers=3", r"another \[model\]"),
        ("train.seed=1", r"another \[train\] seed"),
        ("train.optimizer=muon", r"another \[train\] optimizer"),
        ("train.steps=9", r"step_00000010: is past \[train\] steps, 9"),
    ],
)
def test_another_run_is_not_gone_on_with(config_file: Path, override: str, message: str) -> None:
    list(trainer_of(load_config(config_file)).run())
    with pytest.raises(TrainingError, match=message):
        trainer_of(load_config(config_file, [override]))


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "place", ["protembed.checkpoints.native.save_file", "torch.distributed.checkpoint.FileSystemWriter.write_data"]
)
def test_a_full_disk_is_one_clear_error(config_file: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    config = load_config(config_file)
    with monkeypatch.context() as full:
        full.setattr(place, no_space)
        with pytest.raises(OutputError, match=r"step_00000005: cannot be written \(.*No space left"):
            list(trainer_of(config).run())
    assert trainer_of(config).progress.step == 0
    assert [report.step for report in trainer_of(config).run()] == list(range(1, 11))


def test_a_folder_that_cannot_be_made(config_file: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"run.toml/run: cannot be written"):
        trainer_of(load_config(config_file, [f"train.out={config_file}/run"]))


def test_a_validation_set_that_asks_for_nothing(config_file: Path, tmp_path: Path) -> None:
    write_fasta(tmp_path / "x.fasta", {"x": "XXXXXX"})
    words = [f"data.valid={tmp_path}/x.fasta", f"data.corpus={tmp_path}/other"]
    with pytest.raises(TrainingError, match="no residue that can be asked for"):
        trainer_of(load_config(config_file, words))


def test_a_protein_of_unknown_residues_alone_in_its_batch(config_file: Path, tmp_path: Path) -> None:
    write_fasta(tmp_path / "train.fasta", {**SEQUENCES, "x": "X" * 90})
    found = losses(load_config(config_file, ["train.batch_tokens=92", "train.steps=8"]))
    assert 0.0 in found
    assert all(loss > 2 for loss in found if loss)


def test_a_run_goes_on_where_the_corpus_was_moved_but_not_on_another(config_file: Path, tmp_path: Path) -> None:
    list(trainer_of(load_config(config_file, ["train.steps=5"])).run())
    (tmp_path / "corpus").rename(tmp_path / "elsewhere")
    (tmp_path / "train.fasta").rename(tmp_path / "gone.fasta")
    moved = load_config(config_file, [f"data.corpus={tmp_path}/elsewhere"])
    assert [report.step for report in trainer_of(moved).run()] == [6, 7, 8, 9, 10]
    write_fasta(tmp_path / "train.fasta", {"a": "MKTAYIAKQR"})
    with pytest.raises(TrainingError, match=r"another \[data\] corpus"):
        trainer_of(load_config(config_file))


def test_all_processes_must_see_the_same_checkpoints(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_another(self: World, *values: float) -> list[float]:
        return [value + other for value, other in zip(values, (10, 100), strict=True)]

    config = load_config(config_file)
    two = World(launch=Launch(size=2), device=torch.device("cpu"))
    monkeypatch.setattr(World, "sum", with_another)
    assert two.agrees(10)
    monkeypatch.setattr(World, "wait", lambda self: None)
    with pytest.raises(TrainingError, match="not all processes find the same checkpoints"):
        Trainer(config, two)


class TestAhead:
    def test_items_and_their_end(self) -> None:
        assert list(ahead(iter(range(7)))) == list(range(7))

    def test_an_error_is_raised_in_its_place(self) -> None:
        made = ahead(6 // left for left in (3, 2, 0, 1))
        assert [next(made), next(made)] == [2, 3]
        with pytest.raises(ZeroDivisionError):
            next(made)

    def test_the_thread_ends_with_its_reader_and_is_never_far_ahead(self) -> None:
        made: list[int] = []

        def items() -> Iterator[int]:
            for number in itertools.count():
                made.append(number)
                yield number

        before = threading.active_count()
        stream = ahead(items(), depth=2)
        assert next(stream) == 0
        stream.close()
        for _ in range(500):
            if threading.active_count() == before:
                break
            time.sleep(0.01)
        assert threading.active_count() == before
        assert len(made) <= 5


def test_no_thread_outlives_a_run(config_file: Path) -> None:
    list(trainer_of(load_config(config_file)).run())
    for _ in range(500):
        if all(thread.name != "data" for thread in threading.enumerate()):
            return
        time.sleep(0.01)
    raise AssertionError("the data thread is still there")


@pytest.mark.parametrize(("device", "message"), [("warp", "no such kind"), ("mps", "cpu or cuda")])
def test_devices_that_are_none(device: str, message: str) -> None:
    with pytest.raises(UsageError, match=message), join(Launch(), device):
        pass


def test_a_loss_that_is_not_a_number_stops_the_run_and_leaves_its_batch(config_file: Path, tmp_path: Path) -> None:
    trainer = trainer_of(load_config(config_file))
    with torch.no_grad():
        trainer.module.model.encoder.embedding.weight[5] = math.nan
    with pytest.raises(TrainingError, match="not a number at step 1"):
        list(trainer.run())
    batch = np.load(tmp_path / "run" / "not_a_number_step_00000001" / "process_0_batch_0.npz")
    assert batch["tokens"].sum() == next(trainer.steps.after(Cursor(), 0)).batches[0].question.tokens.sum()
    assert batch["lengths"].sum() == len(batch["tokens"])


@pytest.mark.parametrize("name", ["progress.json", "model.safetensors", "optimizer/.metadata"])
def test_a_damaged_checkpoint_is_one_clear_error(config_file: Path, tmp_path: Path, name: str) -> None:
    config = load_config(config_file)
    list(trainer_of(config).run())
    damaged = tmp_path / "run" / "step_00000010" / name
    damaged.write_bytes(damaged.read_bytes()[:40])
    with pytest.raises(ProtembedError, match="step_00000010"):
        trainer_of(config)


def test_layers_that_end_in_a_norm_are_not_added() -> None:
    encoder = make_card(ModelSection(name="x", d_model=8, n_layers=2, n_heads=2, d_ff=16)).encoder
    small = replace(encoder, norm_order="post", final_norm=False)
    assert can_grow(small, replace(small, d_ff=2 * small.d_ff))
    assert not can_grow(small, replace(small, n_layers=3))


def test_weights_to_start_from(config_file: Path, tmp_path: Path) -> None:
    list(trainer_of(load_config(config_file)).run())
    words = [f"train.out={tmp_path}/second", f"train.start_from={tmp_path}/run/model.safetensors"]
    again = trainer_of(load_config(config_file, words))
    first = checkpoint.load(tmp_path / "run" / "model.safetensors", device=torch.device("cpu"))
    for name, tensor in again.module.model.state_dict().items():
        assert torch.equal(tensor, first.state_dict()[name])
    assert again.progress.step == 0
    for other in ("model.d_ff=48", "model.n_layers=1", "model.d_model=64"):
        with pytest.raises(TrainingError, match="another shape"):
            trainer_of(load_config(config_file, [*words, f"train.out={tmp_path}/third", other]))


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_a_smaller_model_to_start_from_grows(config_file: Path, tmp_path: Path, activation: str) -> None:
    words = [f"model.activation={activation}", "train.steps=2"]
    list(trainer_of(load_config(config_file, words)).run())
    larger = ["model.d_ff=96", "model.n_layers=3", "model.stem=5", f"train.start_from={tmp_path}/run/model.safetensors"]
    trainer = trainer_of(load_config(config_file, [*words, *larger, f"train.out={tmp_path}/second"]))
    small = checkpoint.load(tmp_path / "run" / "model.safetensors", device=torch.device("cpu"))
    large = trainer.module.model
    assert len(large.encoder.blocks) == 3
    encoded = [torch.from_numpy(PROTEMBED.encode(sequence)) for sequence in SEQUENCES.values()]
    tokens, layout = torch.cat(encoded), Packed([len(x) for x in encoded])
    with torch.no_grad():
        torch.testing.assert_close(large.logits(large(tokens, layout)), small.logits(small(tokens, layout)))
    before = {name: tensor.clone() for name, tensor in large.state_dict().items()}
    list(trainer.run())
    after = large.state_dict()
    for name in ("blocks.0.feed_forward.down.weight", "blocks.2.attention.out.weight", "stem.weight"):
        assert not torch.equal(before[f"encoder.{name}"], after[f"encoder.{name}"]), f"{name} learns"
    smaller = [*words, *larger, "model.n_layers=2", f"train.out={tmp_path}/second"]
    with pytest.raises(TrainingError, match=r"another \[model\]"):
        trainer_of(load_config(config_file, smaller))


def test_metrics_of_steps_that_are_done_again_are_dropped(config_file: Path, tmp_path: Path) -> None:
    config = load_config(config_file)
    for report in trainer_of(config).run():
        if report.step == 8:
            break
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    list(trainer_of(config).run())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 11))


def test_tensorboard(config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(config_file, ["train.tensorboard=true"])
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(DependencyError, match="tensorboard"):
            list(trainer_of(config).run())
    pytest.importorskip("tensorboard")
    list(trainer_of(config).run())
    (events,) = (tmp_path / "run").glob("events.out.tfevents.*")
    assert b"tokens_per_second" in events.read_bytes()


class TestShape:
    def test_filled_batches_have_one_shape_and_the_same_loss(self, config_file: Path) -> None:
        plain = trainer_of(load_config(config_file))
        shape = Shape(tokens=300, places=45, longest=102, pad_id=PROTEMBED.pad_id)
        filled = replace(plain.steps, shape=shape)
        shapes = set()
        for step, other in itertools.islice(
            zip(plain.steps.after(Cursor(), 0), filled.after(Cursor(), 0), strict=True), 5
        ):
            inputs = other.batches[0].on(torch.device("cpu"))
            shapes.add((len(inputs[0]), len(inputs[2]), len(inputs[3]), inputs[1].longest))
            with torch.no_grad():
                expected = plain.module(*step.batches[0].on(torch.device("cpu"))).sum()
                # torch's CPU attention takes no empty sequences; a GPU's fused one does.
                kept = Packed([length for length in other.batches[0].lengths if length])
                found = plain.module(inputs[0], kept, *inputs[2:]).sum()
            assert found.item() == pytest.approx(expected.item(), abs=1e-4)
            assert other.batches[0].count == step.batches[0].count < 45
        assert shapes == {(300, 45, 45, 102)}

    def test_compiled_blocks_see_no_new_shape(self, config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The graph of a block is captured whole, once, with the fused attention's place taken by plain attention."""

        def dense(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *_: object) -> Tensor:
            own = torch.searchsorted(offsets, torch.arange(len(q), dtype=torch.int32), right=True)
            mask = own[:, None] == own[None, :]
            q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
            attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            return attended.squeeze(0).transpose(0, 1)

        monkeypatch.setattr(layout, "_is_fusable", lambda q: True)
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", dense)
        trainer = trainer_of(load_config(config_file))
        shape = Shape(tokens=300, places=45, longest=102, pad_id=PROTEMBED.pad_id)
        steps = [
            step.batches[0] for step in itertools.islice(replace(trainer.steps, shape=shape).after(Cursor(), 0), 5)
        ]
        with torch.no_grad():
            expected = [trainer.module(*batch.on(torch.device("cpu"))).sum().item() for batch in steps]
        counter = CompileCounter()
        for block in trainer.module.model.encoder.blocks:
            block.compile(fullgraph=True, backend=counter)
        for batch, loss in zip(steps, expected, strict=True):
            found = trainer.module(*batch.on(torch.device("cpu"))).sum()
            assert found.item() == pytest.approx(loss, abs=1e-3)
            found.backward()  # type: ignore[no-untyped-call]
        assert counter.frame_count <= 2  # batches of at most 4 and at most 8 sequences
        compiled = counter.frame_count
        trainer.config = replace(trainer.config, parallel=ParallelSection(compile=True))
        assert math.isfinite(trainer.evaluate())
        assert counter.frame_count == compiled  # shapes of evaluation are many


def test_perplexity_of_a_model_that_knows_nothing_is_the_vocabulary(config_file: Path) -> None:
    trainer = trainer_of(load_config(config_file))
    with torch.no_grad():
        for parameter in trainer.module.parameters():
            parameter.zero_()
    proteins = [PROTEMBED.encode(sequence) for sequence in SEQUENCES.values()]
    assert perplexity([ProteinLoss(index=0, length=1, loss=800.0, count=1)]) == math.inf
    found = list(protein_losses(trainer.module.model, proteins))
    assert perplexity(found) == pytest.approx(len(PROTEMBED), rel=1e-5)
    standard = sum(letter in STANDARD_RESIDUES for sequence in SEQUENCES.values() for letter in sequence)
    assert sum(item.count for item in found) == standard


def test_masks_differ_from_step_to_step_and_from_batch_to_batch(config_file: Path, tmp_path: Path) -> None:
    write_fasta(tmp_path / "one.fasta", {"one": SEQUENCES["sp|P01308|INS_HUMAN"][:90]})
    words = [f"data.train={tmp_path}/one.fasta", f"data.corpus={tmp_path}/one", "train.accumulate=3"]
    trainer = trainer_of(load_config(config_file, [*words, "train.batch_tokens=92"]))
    steps = itertools.islice(trainer.steps.after(Cursor(), 0), 3)
    places = [tuple(batch.question.places) for step in steps for batch in step.batches]
    assert len(places) == len(set(places)) == 9
    again = next(trainer.steps.after(Cursor(), 0)).batches
    assert [tuple(batch.question.places) for batch in again] == places[:3]


def test_the_end_of_a_run_is_evaluated_and_saved_and_only_the_newest_checkpoints_are_kept(
    config_file: Path, tmp_path: Path
) -> None:
    words = ["train.steps=13", "train.checkpoint_every=4", "train.evaluate_every=5", "train.keep_checkpoints=2"]
    reports = list(trainer_of(load_config(config_file, words)).run())
    assert [report.step for report in reports if report.valid_perplexity is not None] == [5, 10, 13]
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step_00000012", "step_00000013"]
    tokens = [report.tokens for report in reports]
    assert tokens == sorted(set(tokens))
    assert tokens[-1] == pytest.approx(13 * tokens[0], rel=0.5)


def test_validation_proteins_are_cut_as_training_ones_are(config_file: Path) -> None:
    trainer = trainer_of(load_config(config_file, ["data.max_residues=40"]))
    assert [len(protein) for protein in trainer.valid.proteins] == [42, 42, 42]
    whole = PROTEMBED.encode(next(iter(SEQUENCES.values())))
    assert trainer.valid.proteins[0][:41].tolist() == whole[:41].tolist()


def test_every_protein_is_scored_on_residues_of_its_own_draw(config_file: Path) -> None:
    """One seed for all would hide the same places of proteins of one length."""
    trainer = trainer_of(load_config(config_file))
    proteins = [PROTEMBED.encode(SEQUENCES["sp|P01308|INS_HUMAN"])] * 5
    found = list(protein_losses(trainer.module.model, proteins, passes=1))
    assert len({item.loss for item in found}) == 5
    again = list(protein_losses(trainer.module.model, proteins, passes=1))
    assert [item.loss for item in again] == [item.loss for item in found]


def test_pretrain_command(run: Run, config_file: Path, tmp_path: Path, fasta: Path) -> None:
    result = run("pretrain", "--config", config_file, "--set", "train.steps=6")
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert "step 0 of 6" in result.stderr
    assert (tmp_path / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")
    again = run("embed", fasta, "-m", tmp_path / "run" / "model.safetensors", "-o", "out.h5")
    assert again.returncode == 0, again.stderr
    wrong = run("pretrain", "--config", config_file, "--set", "train.stepz=6")
    assert wrong.returncode == 2
    assert "unknown key 'stepz'" in wrong.stderr
