"""Training of task heads: rules that can be learned are, features are computed once, and what is written predicts."""

import json
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from protembed.backends.base import Output, Outputs
from protembed.backends.torch_backend import TorchBackend
from protembed.checkpoints import native as checkpoint
from protembed.checkpoints.head_arrays import read_head_card
from protembed.checkpoints.head_files import load_head
from protembed.errors import InputError, ModelError, OutputError, ProtembedError, TrainingError, UsageError
from protembed.inference.predict import attach_heads, predict
from protembed.sequences.alphabet import STANDARD_RESIDUES
from protembed.sequences.batching import TokenBatch
from protembed.sequences.records import Record
from protembed.tasks.task import own_task
from protembed.training.finetune.calibration import fit_temperature
from protembed.training.finetune.config import load_task_config
from protembed.training.finetune.curve import draw_curve
from protembed.training.finetune.report import EpochReport
from protembed.training.finetune.scoring import Answers, expected_calibration_error
from protembed.training.finetune.trainer import HeadTrainer
from tests.conftest import ROOT, Run

HYDROPHOBIC = set("AILMFVWC")

TOML = """
[task]
name = "{name}"
kind = "{kind}"
[data]
path = "{folder}/data"
[encoder]
model = "{model}"
[head]
hidden = 32
dropout = 0.0
license = "CC0-1.0"
[train]
out = "{folder}/run"
epochs = 15
batch_tokens = 400
learning_rate = 1e-2
device = "cpu"
"""


def proteins(count: int, seed: int = 0) -> dict[str, str]:
    """Make proteins that differ in length and in their share of hydrophobic residues."""
    rng = np.random.default_rng(seed)
    oily, other = (sorted(set(STANDARD_RESIDUES) & HYDROPHOBIC), sorted(set(STANDARD_RESIDUES) - HYDROPHOBIC))
    found = {}
    for number in range(count):
        length, share = rng.integers(20, 50), rng.uniform(0.1, 0.9)
        found[f"P{number}"] = "".join(rng.choice(oily if rng.random() < share else other) for _ in range(length))
    return found


def after_hydrophobic(sequence: str) -> str:
    """Label every residue by the one before it."""
    return "n" + "".join("h" if residue in HYDROPHOBIC else "n" for residue in sequence[:-1])


def write_residues(folder: Path, labels: Mapping[str, tuple[str, str]], sets: Sequence[str]) -> None:
    """Write biotrainer's files; proteins take turns in the sets."""
    folder.mkdir(exist_ok=True)
    for name, part in (("sequences", 0), ("labels", 1)):
        lines = [f">{key} SET={sets[n % len(sets)]}\n{pair[part]}\n" for n, (key, pair) in enumerate(labels.items())]
        (folder / f"{name}.fasta").write_text("".join(lines))


def write_targets(folder: Path, targets: Mapping[str, tuple[str, object]], sets: Sequence[str]) -> None:
    folder.mkdir(exist_ok=True)
    lines = [
        f">{key} TARGET={target} SET={sets[n % len(sets)]}\n{sequence}\n"
        for n, (key, (sequence, target)) in enumerate(targets.items())
    ]
    (folder / "all.fasta").write_text("".join(lines))


class Job:
    """A configuration in a folder of its own, trained with changes."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self.told = {"kind": "residue_classes", "name": "own"}

    def make(self, *changes: str) -> HeadTrainer:
        path = self.folder / "task.toml"
        path.write_text(TOML.format(folder=self.folder, model=self.model, **self.told))
        return HeadTrainer(load_task_config(path, changes))

    def train(self, *changes: str) -> HeadTrainer:
        trainer = self.make("train.overwrite=true", *changes)
        for _ in trainer.run():
            pass
        return trainer


@pytest.fixture
def job(tmp_path: Path, model_file: Path) -> Job:
    return Job(tmp_path, model_file)


@pytest.fixture
def rule(job: Job) -> Job:
    """A rule that every residue's neighbour tells."""
    made = {name: (sequence, after_hydrophobic(sequence)) for name, sequence in proteins(200).items()}
    write_residues(job.folder / "data", made, ("train", "train", "train", "val", "test"))
    return job


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that went through an encoder for its hidden states."""
    seen: list[int] = []
    plain = TorchBackend.run

    def run(self: TorchBackend, batch: TokenBatch, wanted: Sequence[Output]) -> Outputs:
        seen.append(len(batch.tokens))
        return plain(self, batch, wanted)

    monkeypatch.setattr(TorchBackend, "run", run)
    return seen


def test_a_rule_is_learned_and_predicted(rule: Job, model_file: Path) -> None:
    trainer = rule.train('data.test=["test"]')
    assert trainer.results["valid_accuracy"] > 0.9
    assert trainer.results["test_accuracy"] > 0.9
    card = read_head_card(trainer.result)
    assert (card.task, card.labels, card.license) == ("own", ("h", "n"), "CC0-1.0")
    assert card.encoder_sha256 == checkpoint.read_card(model_file).sha256
    assert card.training["train"] == "train"
    assert card.training["valid_accuracy"] == trainer.results["valid_accuracy"]
    backend = TorchBackend(checkpoint.load(model_file, device=torch.device("cpu")))
    predictor, heads = attach_heads(backend, [str(trainer.result)])
    sequence = proteins(1, seed=7)["P0"]
    (found,) = predict([Record("P0", sequence, "P0", "here")], predictor, heads)
    expected = after_hydrophobic(sequence)
    assert np.mean([a == b for a, b in zip(found.tasks["own"].labels, expected, strict=True)]) > 0.9


def test_hidden_states_are_computed_once(rule: Job, passes: list[int]) -> None:
    first = rule.train("train.epochs=2")
    tokens = len(first.train.tokens) + len(first.valid.tokens)
    assert sum(passes) == tokens
    again = rule.train("train.epochs=2", "head.hidden=16")
    assert sum(passes) == tokens
    assert len(again.trained) < len(first.trained)
    rule.train("train.epochs=1", "encoder.layers=[1, 2]")
    assert sum(passes) == 2 * tokens  # layer 1 alone was missing
    files = sorted(path.name.partition("-")[2] for path in (rule.folder / "run" / "features").iterdir())
    assert files == ["residues-1.npy"] * 2 + ["residues-2.npy"] * 2


def test_the_one_hot_twin_runs_no_encoder(rule: Job, passes: list[int]) -> None:
    trainer = rule.train('head.reads="residue"')
    assert not passes
    assert trainer.results["valid_accuracy"] > 0.9
    assert read_head_card(trainer.result).config.reads == "residue"


def test_same_seed_same_bytes(rule: Job) -> None:
    contents = [rule.train("train.epochs=2", f"train.seed={seed}").result.read_bytes() for seed in (3, 3, 4)]
    assert contents[0] == contents[1] != contents[2]


def test_it_stops_when_the_metric_stays_behind(job: Job) -> None:
    rng = np.random.default_rng(0)
    made = {name: (s, "".join(rng.choice(list("ab"), len(s)))) for name, s in proteins(40).items()}
    write_residues(job.folder / "data", made, ("train", "val"))
    trainer = job.make("train.epochs=60", "train.patience=2")
    reports = list(trainer.run())
    best = max(reports, key=lambda report: report.value)
    assert len(reports) < 60
    assert reports[-1].epoch == best.epoch + 2
    assert trainer.results["epoch"] == best.epoch
    assert trainer.results["valid_accuracy"] == pytest.approx(best.value, abs=1e-5)
    lines = (job.folder / "run" / "metrics.jsonl").read_text().splitlines()
    assert [EpochReport(**json.loads(line)) for line in lines] == reports
    assert "curve.png" in draw_curve(job.folder / "run")


@pytest.mark.parametrize("kind", ["sequence_value", "sequence_class"])
def test_proteins(job: Job, kind: str) -> None:
    """The share of hydrophobic residues, or whether it is above the middle."""
    job.told["kind"] = kind
    shares = {name: (s, np.mean([r in HYDROPHOBIC for r in s])) for name, s in proteins(240).items()}
    targets = {
        name: (sequence, 40 + 10 * share if kind == "sequence_value" else "high" if share > 0.5 else "low")
        for name, (sequence, share) in shares.items()
    }
    write_targets(job.folder / "data", targets, ("train", "train", "train", "val"))
    results = job.train("train.epochs=25", "train.patience=25").results
    if kind == "sequence_class":
        assert results["valid_accuracy"] > 0.9
        return
    assert results["valid_spearman"] > 0.9
    assert results["valid_rmse"] < 1  # in the data's unit: the spread is 2.5
    card = read_head_card(job.folder / "run" / "head.safetensors")
    assert 44 < card.offset < 46


def test_values_and_flags_of_residues(job: Job) -> None:
    made = proteins(200)
    job.told["kind"] = "residue_values"
    values = {n: (s, ",".join(str(STANDARD_RESIDUES.index(r) - 5.5) for r in s)) for n, s in made.items()}
    write_targets(job.folder / "data", values, ("train", "val"))
    results = job.train().results
    assert results["valid_spearman"] > 0.9
    assert results["valid_rmse"] < 3  # the spread is 5.8
    (job.folder / "data" / "all.fasta").unlink()
    job.told["kind"] = "residue_flags"
    write_residues(job.folder / "data", {n: (s, s.translate(FLAGS)) for n, s in made.items()}, ("train", "val"))
    results = job.train('task.labels=["M", "S"]', 'train.class_weights="balanced"').results
    assert results["valid_mean_mcc"] > 0.9


FLAGS = str.maketrans(
    {letter: "M" if letter == "W" else "S" if letter in "DE" else "-" for letter in STANDARD_RESIDUES}
)


@pytest.mark.parametrize("design", ["compact", "tape"])
def test_contacts(job: Job, design: str) -> None:
    """Chains that all fold back in the middle: attention and products of residues both see something of it."""
    rng = np.random.default_rng(0)
    write_contacts(job.folder / "data", rng)
    path = job.folder / "task.toml"
    text = TOML.format(folder=job.folder, model=job.model, name="contact", kind="")
    path.write_text(text)
    trainer = HeadTrainer(load_task_config(path, [f'head.design="{design}"', "train.epochs=4", "train.threads=1"]))
    reports = list(trainer.run())
    assert reports[-1].loss < reports[0].loss
    assert 0 < trainer.results["valid_precision_at_l5"] <= 1
    _, card = load_head(trainer.result, device=torch.device("cpu"))
    assert card.task == "contact"
    batch = next(trainer.valid.batches(500, torch.device("cpu")))
    pairs = torch.triu(torch.ones_like(batch.counts[0]), 6)
    assert torch.equal(batch.counts[0], pairs)
    assert batch.targets[0].any()
    assert trainer.results["valid_calibration_error_after"] <= trainer.results["valid_calibration_error_before"] + 0.01


def write_contacts(folder: Path, rng: np.random.Generator) -> None:
    folder.mkdir()
    for split in ("train", "valid"):
        sequences = [s.encode() for s in proteins(10, seed=int(split == "valid")).values()]
        coordinates = [hairpin(len(s)) + rng.normal(0, 2, (len(s), 3)) for s in sequences]
        np.savez(
            folder / f"{split}.npz",
            ids=np.array([f"{split}{n}".encode() for n in range(10)]),
            offsets=np.cumsum([0, *map(len, sequences)]),
            residues=np.frombuffer(b"".join(sequences), dtype=np.uint8),
            coords=np.concatenate(coordinates).astype(np.int16),
        )


def hairpin(length: int) -> np.typing.NDArray[np.float64]:
    """Two strands 5 Angstrom apart, in units of 0.1 Angstrom."""
    place = np.arange(length)
    back = place >= length // 2
    x = np.where(back, 2 * (length // 2) - place, place)
    return np.stack((35.0 * x, 50.0 * back, np.zeros(length)), axis=1)


def rare_letter(sequence: str) -> str:
    """Label all residues by whether there is a W anywhere."""
    return ("y" if "W" in sequence else "n") * len(sequence)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_what_a_frozen_head_cannot_see(job: Job, model_file: Path, mode: str) -> None:
    made = {}
    for number, (name, sequence) in enumerate(proteins(120).items()):
        changed = sequence.replace("W", "A")
        made[name] = changed[:10] + ("W" if number // 2 % 2 else "G") + changed[11:]
    write_residues(job.folder / "data", {n: (s, rare_letter(s)) for n, s in made.items()}, ("train", "val"))
    changes = ("head.kernel=1", "train.patience=20", "train.epochs=15", "train.encoder_learning_rate=1e-2")
    frozen = job.train(*changes).results["valid_accuracy"]
    trainer = job.train(*changes, f'encoder.mode="{mode}"', 'encoder.lora_targets=["qkv", "out", "up", "down"]')
    assert trainer.results["valid_accuracy"] > max(0.9, frozen + 0.1)
    own = job.folder / "run" / "encoder.safetensors"
    before, after = (checkpoint.load(path, device=torch.device("cpu")) for path in (model_file, own))
    assert read_head_card(trainer.result).encoder_sha256 == after.card.sha256 != before.card.sha256
    assert after.card.mlm_head is None
    old, new = before.state_dict(), after.state_dict()
    changed = {name for name, tensor in new.items() if not torch.equal(tensor, old[name])}
    if mode == "full":
        assert "encoder.embedding.weight" in changed
        return
    assert changed == {name for name in new if name.startswith("encoder.blocks") and new[name].ndim == 2}
    ranks = [torch.linalg.matrix_rank(new[name] - old[name], rtol=1e-3) for name in changed]
    assert max(ranks) <= 8
    head, _ = attach_heads(TorchBackend(after), [str(trainer.result)])
    (found,) = predict([Record("a", made["P2"], "a", "here")], head, [read_head_card(trainer.result)])
    assert found.tasks["own"].labels == rare_letter(made["P2"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", ["frozen", "lora", "full"])
def test_on_a_gpu(rule: Job, mode: str) -> None:
    changes = ("train.device=cuda", "train.precision=bfloat16", f"encoder.mode={mode}")
    assert rule.train(*changes).results["valid_accuracy"] > 0.9


def test_validation_is_drawn_by_cluster_where_there_is_none(job: Job) -> None:
    folder = job.folder / "data"
    folder.mkdir()
    lines = [f">{n} TARGET={len(s)} CLUSTER=c{i // 4}\n{s}\n" for i, (n, s) in enumerate(proteins(40).items())]
    (folder / "all.fasta").write_text("".join(lines))
    job.told["kind"] = "sequence_value"
    splits = job.make("data.valid_share=0.2").splits
    drawn = {protein.record.description.split("CLUSTER=")[1] for protein in splits.valid}
    kept = {protein.record.description.split("CLUSTER=")[1] for protein in splits.train}
    assert (len(splits.valid), len(splits.train), drawn & kept) == (8, 32, set())
    assert splits.valid == job.make("data.valid_share=0.2").splits.valid
    assert "drawn by seed 0" in splits.notes[-1]


def test_long_proteins_are_cut_or_refused(rule: Job) -> None:
    whole, cut = rule.make(), rule.make("data.max_residues=30")
    assert whole.train.residues == cut.train.residues
    assert cut.train.long > 0
    assert max(cut.train.lengths) == 32
    assert int(cut.train.counts.sum()) == int(whole.train.counts.sum())
    assert any("were cut" in line for line in cut.introduce())
    with pytest.raises(InputError, match="and 30 are allowed"):
        rule.make("data.max_residues=30", 'data.long="error"')


def test_negatives_join_the_training(rule: Job, tmp_path: Path) -> None:
    more = {f"N{number}": (sequence, 0) for number, sequence in enumerate(proteins(30, seed=3).values())}
    write_targets(tmp_path / "more", more, ("train", "val"))
    path = tmp_path / "more" / "all.fasta"
    splits = rule.make(f'negatives.path="{path}"', "negatives.label=n", "negatives.proteins=9").splits
    own = rule.make().splits
    assert len(splits.train) == len(own.train) + 9
    assert len(splits.valid) == len(own.valid) + 3
    assert set(splits.train[-1].target) == {splits.labels.index("n")}


def test_temperature_calibrates() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (5000, 3))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = (shares.cumsum(axis=1) > rng.random((5000, 1))).argmax(axis=1)
    bold = Answers(outputs=3 * logits, targets=targets)
    temperature = fit_temperature(bold.outputs, bold.targets)
    assert temperature == pytest.approx(3, rel=0.1)
    before, after = (expected_calibration_error("residue_classes", bold, t) for t in (1, temperature))
    assert after < 0.03 < before
    yes = rng.random((5000, 2)) < 1 / (1 + np.exp(-logits[:, :2]))
    assert fit_temperature(logits[:, :2] / 2, yes) == pytest.approx(0.5, rel=0.1)


BAD = [
    ("task.name=nonsense", "task.kind=''", "no task is called 'nonsense'"),
    ("task.name=ss3", "train.epochs=1", "takes no kind"),
    ("task.kind=sequences", "train.epochs=1", "not one of"),
    ('data.train=["nowhere"]', "train.epochs=1", "no proteins of SET=nowhere"),
    ('data.valid=["nowhere"]', "train.epochs=1", "no proteins of SET=nowhere"),
    ('encoder.mode="frosen"', "train.epochs=1", "not one of frozen, lora, full"),
    ('encoder.mode="lora"', 'head.reads="residue"', "no encoder to train"),
    ("encoder.layers=[9]", "train.epochs=1", "layer 9 does not exist"),
    ("head.kernel=4", "train.epochs=1", "must be odd"),
    ("head.width=4", "train.epochs=1", "unknown key 'width'"),
    ("head.design=proteinlm", "train.epochs=1", "no head of design"),
    ("train.metric=rmse", "train.epochs=1", "metric is 'rmse'"),
    ("data.path=/nowhere", "train.epochs=1", "no such file"),
    ('data.where=["TYPE"]', "train.epochs=1", "not KEY=value"),
    ('task.labels=["h", "n", "z"]', "train.epochs=1", "no training example, the first is 'z'"),
    ('task.labels=["h"]', "train.epochs=1", "the label 'n' of residue 1 is not in the set"),
    ('task.labels=["h", "no"]', "train.epochs=1", r"\[task\] labels holds 'no'"),
    ('task.labels=["h", "\\t"]', "train.epochs=1", r"labels holds '\\t'"),
    ('task.labels=["h", "n", "h"]', "train.epochs=1", "holds a label twice"),
    ('task.labels=["a\\nb"]', "task.kind=sequence_class", r"labels holds 'a\\nb'"),
    ("negatives.path=x.fasta", "negatives.label=q", "label is 'q'"),
    ("negatives.path=x.fasta", "negatives.proteins=0", "proteins is 0, not 1 or more"),
    ("task.name='a/b'", "train.epochs=1", r"\[task\]: name is 'a/b'"),
    ('task.name="a\\tb"', "train.epochs=1", "name is"),
    ("task.name=''", "train.epochs=1", "name is ''"),
    ("data.proteins=-1", "train.epochs=1", "proteins is -1, not 0 or more"),
    ("head.dropout=1.5", "train.epochs=1", "dropout is 1.5, not between 0 and 1"),
    ("train.learning_rate=nan", "train.epochs=1", "learning_rate is nan, not above 0"),
    ("train.clip=0.0", "train.epochs=1", "clip is 0.0, not above 0"),
    ("train.seed=-1", "train.threads=1", "seed is -1, not 0 or more"),
    ("train.threads=-1", "train.seed=1", "threads is -1, not 0 or more"),
    ("train.weight_decay=-1", "train.epochs=1", "weight_decay is -1.0, not 0 or more"),
    ("train.warmup_share=5", "train.epochs=1", "warmup_share is 5.0, not between"),
    *(
        (
            f"{name}=1{'0' * 12}",
            "train.metric=mcc",
            rf"task\.toml, section \[.*\]: {name.split('.')[1]} is 1000000000000, not",
        )
        for name in (
            *("head.hidden", "head.kernel", "train.epochs", "train.batch_tokens", "train.seed", "train.threads"),
            *("train.patience", "data.proteins", "data.max_residues", "encoder.lora_rank", "negatives.proteins"),
        )
    ),
    ("train.learning_rate=inf", "train.epochs=1", "learning_rate is inf, not 1e"),
    ("train.weight_decay=inf", "train.epochs=1", "weight_decay is inf, not 1e"),
    ("encoder.lora_alpha=nan", "train.epochs=1", "lora_alpha is nan, not above 0"),
    ("encoder.lora_alpha=0.0", "train.epochs=1", "lora_alpha is 0.0, not above 0"),
    ("encoder.lora_targets=['qkv', 'qkv']", "train.epochs=1", "lora_targets holds a value twice"),
    ("encoder.layers=[1, 1]", "train.epochs=1", "layers holds a value twice"),
    ("encoder.layers=[-99]", "train.epochs=1", "layer -99 does not exist"),
    ("data.path=''", "train.epochs=1", r"section \[data\]: path is empty"),
    ("train.out=' '", "train.epochs=1", r"section \[train\]: out is empty"),
    ("train.out='a,b'", "train.epochs=1", "out is 'a,b'"),
    ("encoder.model=''", "train.epochs=1", r"section \[encoder\]: model is empty"),
    ('data.path="a\\u0000b"', "train.epochs=1", r"path holds 'a\\x00b'"),
    ('head.license="\\u001b[31m"', "train.epochs=1", "license holds"),
    ('data.where=["A=\\n"]', "train.epochs=1", "where holds"),
    ('data.train=["train", "train"]', "train.epochs=1", "the split train is named twice, in train and in train"),
    ('data.valid=["val"]', 'data.test=["valid"]', "the split valid is named twice, in valid and in test"),
]


@pytest.mark.parametrize(("one", "other", "message"), BAD)
def test_bad_configurations(rule: Job, one: str, other: str, message: str) -> None:
    with pytest.raises(ProtembedError, match=message):
        rule.make(one, other)


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 100_000,
        "[train]\nout = 'run'\nepochs = " + "9" * 5000,
        "[train]\nout = 'run'\nepochs = 0x" + "f" * 5000,
        "[train]\nout = 'run'\nlearning_rate = 0x" + "f" * 5000,
        "[train]\nout = [" + "'a'," * 10_000 + "]",
        "[train]\nout = 1979-05-27",
        "[[train]]\nout = 'run'",
        "task = 3",
        "[" + "a." * 20_000 + "b]",
        "\0",
    ],
    ids=range(10),
)
def test_configurations_of_nonsense_are_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "task.toml"
    path.write_text(f"{text}\n" + ("[task]\nname = 'ss3'\n[data]\npath = 'data'\n" if "[train]" in text else ""))
    with pytest.raises(UsageError, match=r"task\.toml") as caught:
        load_task_config(path)
    assert len(str(caught.value)) < 1000


def test_a_head_of_no_numbers_is_not_written(rule: Job) -> None:
    trainer = rule.make("train.epochs=1", "train.learning_rate=1e38", "train.batch_tokens=100000")
    with pytest.raises(TrainingError, match="what the head says is not a number"):
        list(trainer.run())
    assert not trainer.result.exists()


def test_folders_that_cannot_be_written_and_damaged_hidden_states(rule: Job) -> None:
    (rule.folder / "file").write_text("")
    for setting in ("train.out={}/file", "train.out={}/file/run", "data.cache={}/file"):
        with pytest.raises(OutputError, match=r"file.*: cannot be written"):
            list(rule.make("train.epochs=1", setting.format(rule.folder)).run())
    rule.train("train.epochs=1")
    for path in (rule.folder / "run" / "features").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="damaged hidden states") as caught:
        rule.train("train.epochs=1")
    assert "Remove it" in caught.value.hint


def test_one_class_is_nothing_to_learn(job: Job) -> None:
    write_residues(job.folder / "data", {"a": ("MKVA", "hhhh"), "b": ("MKV", "hhh")}, ("train",))
    with pytest.raises(InputError, match="all training examples are of class 'h'"):
        job.make()


def test_bad_targets(job: Job) -> None:
    job.told["kind"] = "sequence_value"
    targets: dict[str, tuple[str, object]] = {"a": ("MKVA", 1.0), "b": ("MKVA", "nan"), "c": ("MKV", 2.0)}
    write_targets(job.folder / "data", targets, ("train",))
    with pytest.raises(InputError, match=r"NaN"):
        job.make()
    write_targets(job.folder / "data", {n: (s, 1.0) for n, (s, _) in targets.items()}, ("train",))
    with pytest.raises(InputError, match="nothing to learn"):
        job.make()


def test_a_table_without_splits_and_a_small_file(job: Job) -> None:
    job.told["kind"] = "sequence_class"
    (job.folder / "data").mkdir()
    rows = [f"{n},{s},{'long' if len(s) > 35 else 'short'}" for n, s in proteins(40).items()]
    (job.folder / "data" / "all.csv").write_text("\n".join(("id,sequence,label", *rows)))
    sizes = {}
    for dtype in ("float32", "float16"):
        trainer = job.train("train.epochs=1", f"head.store_dtype={dtype}")
        sizes[dtype] = trainer.result.stat().st_size
        assert (len(trainer.splits.train), len(trainer.splits.valid)) == (36, 4)
        head, card = load_head(trainer.result, device=torch.device("cpu"))
        assert (card.labels, next(head.parameters()).dtype) == (("long", "short"), torch.float32)
    assert sizes["float16"] < 0.8 * sizes["float32"]


def test_a_head_is_not_replaced_unasked(rule: Job) -> None:
    rule.train("train.epochs=1")
    with pytest.raises(OutputError, match="exists already"):
        rule.make()


def test_the_best_head_is_written_when_told_to_end(rule: Job) -> None:
    trainer = rule.make("train.epochs=500", "train.patience=500", 'data.test=["test"]')
    reports = trainer.run()
    first = next(reports)
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        list(reports)
    facts = load_head(trainer.result, device=torch.device("cpu"))[1].training
    assert (facts["epoch"], facts["valid_accuracy"]) == (1, pytest.approx(first.value, abs=1e-5))
    assert "test_accuracy" not in facts


def test_command_line(rule: Job, run: Run, tmp_path: Path) -> None:
    rule.make()
    config = tmp_path / "task.toml"
    done = run("train", "--config", config, "--set", "train.epochs=2")
    assert done.returncode == 0, done.stderr
    assert "valid_accuracy" in done.stdout
    assert f"--task {tmp_path}/run/head.safetensors" in done.stderr
    assert (tmp_path / "run" / "curve.png").is_file()
    wrong = run(
        "train", "--config", config, "--set", "train.overwrite=true", "--set", "task.kind=", "--set", "task.name=x"
    )
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: no task is called 'x'")
    assert "ss3" in wrong.stderr


def test_baselines_of_the_benchmark(job: Job) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks" / "accuracy"))
    import accuracy

    made = {n: (s, "".join("h" if r in HYDROPHOBIC else "n" for r in s)) for n, s in proteins(40).items()}
    write_residues(job.folder / "data", made, ("train", "test"))
    task = own_task("own", "residue_classes")
    train, test = (task.read(job.folder / "data", split=split) for split in ("train", "test"))
    counted, (first, *_) = accuracy.score(task, test.proteins, accuracy.by_amino_acid(task, train))
    assert (counted, first.name, first.value, first.low) == (
        sum(len(s) for s, _ in made.values()) - sum(len(p.record.sequence) for p in train.proteins),
        "accuracy",
        1.0,
        1.0,
    )
    shares = train.class_counts() / train.class_counts().sum()
    _, (majority, *_) = accuracy.score(task, train.proteins, accuracy.by_majority(task, train))
    assert majority.value == pytest.approx(shares.max())
    write_targets(job.folder / "more", {n: (s, s.count("W") / len(s)) for n, (s, _) in made.items()}, ("train", "test"))
    task = own_task("own", "sequence_value")
    train, test = (task.read(job.folder / "more", split=split) for split in ("train", "test"))
    _, (rho, *_) = accuracy.score(task, test.proteins, accuracy.by_composition(task, train))
    assert rho.value > 0.95
    line = accuracy.Line(task="stability", split="test", way="x", proteins=2, counted=2, scores=[rho])
    assert f"| stability | test | 2 | x | spearman | {rho.value:.3f} ({rho.low:.3f} to " in accuracy.markdown([line])


def test_shipped_configurations_are_sound() -> None:
    from protembed.tasks import TASKS

    folder = ROOT / "configs" / "tasks"
    found = {path.stem: load_task_config(path) for path in folder.glob("*.toml")}
    assert set(found) == set(TASKS)
    assert all(config.task.name == name and config.head.license for name, config in found.items())
    with pytest.raises(UsageError):
        load_task_config(folder / "ss3.toml", ["train.epochs=many"])


def test_the_benchmark_says_whether_a_head_beats_its_twin() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks" / "accuracy"))
    import accuracy

    from protembed.inference.report import Score

    def line(way: str, value: float) -> accuracy.Line:
        score = Score(name="spearman", value=value, low=value - 0.1, high=value + 0.1)
        return accuracy.Line(task="stability", split="test", way=way, proteins=2, counted=2, scores=[score])

    for value, verdict in ((0.5, "yes"), (0.3, "not by more than chance"), (-0.1, "no, worse")):
        table = accuracy.summary([line("plain", 0.0), line(accuracy.TWIN, 0.2), line("own", value)], "own")
        assert f"| {value:.3f} ({value - 0.1:.3f} to {value + 0.1:.3f}) |" in table
        assert table.endswith(f"| plain 0.000 | {verdict} |")
