"""Evaluation: the figures of a head on labelled data equal those worked out from its predictions."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from protembed.backends.torch_backend import TorchBackend
from protembed.checkpoints import native as checkpoint
from protembed.checkpoints.head_files import save_head
from protembed.errors import InputError, UsageError
from protembed.inference.evaluate import EvaluateOptions, Evaluation
from protembed.inference.predict import PredictOptions, attach_heads, predict
from protembed.inference.report import Report
from protembed.models.head_config import HeadCard, Kind
from protembed.models.heads.registry import make_head
from protembed.models.heads.run import design_head
from protembed.sequences.records import Record
from protembed.tasks import TASKS, metrics
from protembed.tasks.prediction import Predicted
from tests.conftest import SEQUENCES, Run

PROTEINS = [sequence[:length] for sequence, length in zip(SEQUENCES.values(), (50, 40, 33, 21, 12, 60), strict=True)]
RNG = np.random.default_rng(0)
HEC = ["".join(RNG.choice(list("HEC"), len(sequence))) for sequence in PROTEINS]


@pytest.fixture
def backend(model_file: Path) -> TorchBackend:
    return TorchBackend(checkpoint.load(model_file, device=torch.device("cpu")))


@pytest.fixture
def head(model_file: Path, tmp_path: Path) -> Callable[..., str]:
    def make(task: str, kind: Kind, labels: tuple[str, ...] = (), **changes: object) -> str:
        encoder = checkpoint.read_card(model_file)
        torch.manual_seed(3)
        module = make_head(design_head(encoder, kind, outputs=max(1, len(labels)), hidden=8, kernel=3))
        names = {"encoder": encoder.name, "encoder_sha256": encoder.sha256}
        card = HeadCard(task=task, config=module.config, labels=labels, **names)
        save_head(module, replace(card, **changes), tmp_path / f"{task}.safetensors")  # type: ignore[arg-type]
        return str(tmp_path / f"{task}.safetensors")

    return make


def evaluate(backend: TorchBackend, task: str, data: Path, **options: object) -> tuple[Report, dict[str, float]]:
    run = Evaluation(backend, EvaluateOptions(task=task, data=data, draws=50, **options))  # type: ignore[arg-type]
    progress = list(run.run())
    assert progress[-1].residues == run.residues
    report = run.report()
    for score in report.scores:
        assert np.isnan(score.low) or score.low <= score.value <= score.high
    return report, {score.name: score.value for score in report.scores}


def outputs(backend: TorchBackend, path: str) -> list[np.ndarray]:  # type: ignore[type-arg]
    predictor, heads = attach_heads(backend, [path])
    items = list(predict((Record("x", sequence) for sequence in PROTEINS), predictor, heads))
    return [next(iter(item.tasks.values())).output for item in items if isinstance(item, Predicted)]


def write(path: Path, lines: list[str], *, sets: str = "test_CB513", name: str = "sequences") -> Path:
    path.mkdir(exist_ok=True)
    records = [f">p{number} SET={sets}\n{line}\n" for number, line in enumerate(lines)]
    (path / f"{name}.fasta").write_text("".join(records))
    return path


def test_residue_classes(backend: TorchBackend, head: Callable[..., str], tmp_path: Path) -> None:
    path = head("ss3", "residue_classes", tuple("HEC"))
    data = write(write(tmp_path / "d", PROTEINS), HEC, name="labels3")
    masks = ["".join(RNG.choice(list("01"), len(sequence))) for sequence in PROTEINS]
    write(data, masks, name="mask")
    report, scores = evaluate(backend, "ss3", data, head=path)
    found = np.concatenate(outputs(backend, path))
    target = np.array(["HEC".index(letter) for letter in "".join(HEC)])
    counted = np.array(list("".join(masks))) == "1"
    target, found = target[counted], found[counted]
    assert (report.proteins, report.counted, report.not_counted) == (6, counted.sum(), (~counted).sum())
    assert scores["accuracy"] == pytest.approx((found.argmax(axis=1) == target).mean())
    assert scores["mcc"] == pytest.approx(metrics.mcc(target, found.argmax(axis=1)))
    assert scores["calibration_error"] == pytest.approx(metrics.calibration_error(target, found))
    assert report.confusion is not None
    assert report.confusion.sum() == counted.sum()
    assert report.confusion.trace() == (found.argmax(axis=1) == target).sum()
    assert report.table is not None
    assert report.table.support.tolist() == np.bincount(target).tolist()
    again, _ = evaluate(backend, path, data)
    assert again.to_dict() == report.to_dict()


def test_sequence_values_and_what_is_left_out(backend: TorchBackend, head: Callable[..., str], tmp_path: Path) -> None:
    path = head("stability", "sequence_value", scale=2.0)
    targets = [0.5, 3.0, -1.0, 0.5, 2.0, 1.0]
    rows = zip(PROTEINS, targets, ("train", "test", "test", "test", "test", "test"), strict=True)
    lines = [f"{sequence},{target},{name}\n" for sequence, target, name in rows]
    (tmp_path / "x.csv").write_text("sequence,target,set\n" + "".join(lines))
    report, scores = evaluate(backend, "stability", tmp_path / "x.csv", head=path, longest=59)
    values = np.array([float(output) for output in outputs(backend, path)])[1:5]
    assert scores["spearman"] == pytest.approx(metrics.spearman(np.array(targets)[1:5], values))
    assert scores["rmse"] == pytest.approx(metrics.rmse(np.array(targets)[1:5], values), rel=1e-5)
    assert dict(report.left_out) == {"longer than 59 residues": 1}
    assert "1 proteins left out: longer than 59 residues" in report.notes()
    assert (report.table, report.classes()[1], report.confusions()[1]) == (None, [], [])


def test_sequence_classes_of_ones_own(backend: TorchBackend, head: Callable[..., str], tmp_path: Path) -> None:
    path = head("place", "sequence_class", ("a", "b"))
    lines = [f">p{n} TARGET={'ab'[n % 2]}\n{sequence}\n" for n, sequence in enumerate(PROTEINS)]
    (tmp_path / "x.fasta").write_text("".join(lines))
    report, scores = evaluate(backend, path, tmp_path / "x.fasta")
    chosen = [int(output.argmax()) for output in outputs(backend, path)]
    assert scores["accuracy"] == pytest.approx(np.mean([number % 2 == c for number, c in enumerate(chosen)]))
    assert (report.task, report.proteins) == ("place", 6)


def test_flags(backend: TorchBackend, head: Callable[..., str], tmp_path: Path) -> None:
    path = head("binding", "residue_flags", tuple("MNS"))
    digits = ["".join(RNG.choice(list("01234567"), len(sequence))) for sequence in PROTEINS]
    data = write(write(tmp_path / "d", PROTEINS, sets="test"), digits, sets="test", name="labels")
    _, scores = evaluate(backend, "binding", data, head=path)
    chosen = np.concatenate(outputs(backend, path)) > 0.5
    truth = np.array([int(digit) >> 1 & 1 for digit in "".join(digits)]) == 1
    assert scores["f1_N"] == pytest.approx(metrics.f1(truth, chosen[:, 1]))
    assert scores["mcc_N"] == pytest.approx(metrics.mcc(truth, chosen[:, 1]))
    assert scores["mean_mcc"] == pytest.approx(np.mean([scores[f"mcc_{name}"] for name in "MNS"]))


def test_contacts(backend: TorchBackend, head: Callable[..., str], tmp_path: Path) -> None:
    path = head("contact", "contacts")
    coordinates = [RNG.integers(-120, 120, (len(sequence), 3)) for sequence in PROTEINS]
    coordinates[0][3:9] = -32768
    np.savez(
        tmp_path / "test.npz",
        ids=np.array([b"p%d" % number for number in range(6)]),
        offsets=np.cumsum([0, *map(len, PROTEINS)]),
        residues=np.frombuffer("".join(PROTEINS).encode(), dtype=np.uint8),
        coords=np.concatenate(coordinates).astype(np.int16),
    )
    report, scores = evaluate(backend, "contact", tmp_path, head=path, tape_batch=4)
    maps, truth = outputs(backend, path), TASKS["contact"].read(tmp_path, split="test").proteins
    top = [
        metrics.top_contacts(scores, *protein.contacts(), top=len(scores) // 5)
        for scores, protein in zip(maps, truth, strict=True)
    ]
    assert scores["precision_at_l5"] == pytest.approx(sum(right for right, _ in top) / sum(chosen for _, chosen in top))
    long = [
        metrics.top_contacts(scores, *protein.contacts(), top=len(scores) // 2, apart=metrics.RANGES["long"])
        for scores, protein in zip(maps, truth, strict=True)
    ]
    assert scores["precision_long_l2"] == pytest.approx(np.mean([right / chosen for right, chosen in long if chosen]))
    labels = [np.where(protein.contacts()[1], protein.contacts()[0], -1) for protein in truth]
    batches = [metrics.tape_precision(maps[part], labels[part]) for part in (slice(4), slice(4, 6))]
    assert scores["precision_at_l5_tape_batches"] == pytest.approx(np.mean(batches))
    assert len(scores) == 1 + 4 * 3 + 1
    assert report.counted + report.not_counted == sum(len(s) * (len(s) - 1) // 2 - sum(len(s) - k for k in range(1, 6)) for s in PROTEINS)  # fmt: skip  # noqa: E501
    assert report.not_counted > 0


def test_intervals_are_of_proteins_not_of_residues(
    backend: TorchBackend, head: Callable[..., str], tmp_path: Path
) -> None:
    """Also where a sequence stands twice: equal proteins are drawn together."""
    path = head("ss3", "residue_classes", tuple("HEC"))
    data = write(write(tmp_path / "d", [*PROTEINS, PROTEINS[0]]), [*HEC, HEC[0]], name="labels3")
    report, _ = evaluate(backend, "ss3", data, head=path)
    found = np.concatenate([*outputs(backend, path), outputs(backend, path)[0]]).argmax(axis=1)
    target = np.array(["HEC".index(letter) for letter in "".join([*HEC, HEC[0]])])
    owners = np.repeat([0, 1, 2, 3, 4, 5, 0], [*map(len, PROTEINS), len(PROTEINS[0])])
    (score,) = (score for score in report.scores if score.name == "accuracy")
    accuracy = lambda rows: metrics.accuracy(target[rows], found[rows])  # noqa: E731
    assert (score.low, score.high) == metrics.bootstrap_interval(accuracy, owners, draws=50)
    assert (score.low, score.high) != metrics.bootstrap_interval(accuracy, np.arange(len(target)), draws=50)


def test_proteins_of_the_training_are_left_out_and_counted(
    backend: TorchBackend, head: Callable[..., str], tmp_path: Path
) -> None:
    path = head("ss3", "residue_classes", tuple("HEC"))
    data = write(write(tmp_path / "d", PROTEINS), HEC, name="labels3")
    report, _ = evaluate(backend, "ss3", data, head=path, trained=frozenset([PROTEINS[2], "MKT"]))
    assert (report.proteins, report.counted) == (5, sum(map(len, PROTEINS)) - len(PROTEINS[2]))
    assert report.left_out == {"in the training data, too": 1}


def test_failed_records_are_counted(backend: TorchBackend, head: Callable[..., str], tmp_path: Path) -> None:
    path = head("ss3", "residue_classes", tuple("HEC"))
    data = write(write(tmp_path / "d", PROTEINS), HEC, name="labels3")
    options = EvaluateOptions(task="ss3", data=data, head=path, draws=10)
    run = Evaluation(backend, options, PredictOptions(long="skip", max_length=45))
    assert len(list(run.run())) == 6
    report = run.report()
    assert report.proteins == 4
    assert sorted(report.left_out.values()) == [1, 1]
    assert report.counted == sum(length for length in map(len, PROTEINS) if length <= 45)
    nothing = Evaluation(backend, options, PredictOptions(long="skip", max_length=5))
    with pytest.raises(InputError, match="could be predicted"):
        list(nothing.run())


def test_mistakes(backend: TorchBackend, head: Callable[..., str], tmp_path: Path) -> None:
    data = write(write(tmp_path / "d", PROTEINS), HEC, name="labels3")
    ss3, place = head("ss3", "residue_classes", tuple("HE")), head("place", "sequence_class", ("a", "b"))
    for options, error, message in (
        ({"task": "ss4"}, UsageError, "no task is called 'ss4'"),
        ({"task": "ss3", "head": place}, UsageError, "predicts sequence_class, and the task ss3 is residue_classes"),
        ({"task": "ss3", "head": ss3}, InputError, "the label 'C' of residue"),
        ({"task": "ss3", "head": ss3, "split": "train"}, InputError, "no proteins of SET=train"),
        ({"task": "ss3", "head": ss3, "data": tmp_path / "no"}, InputError, "no such file or folder"),
    ):
        with pytest.raises(error, match=message):
            Evaluation(backend, EvaluateOptions(**{"data": data, **options}))  # type: ignore[arg-type]


def test_command(run: Run, model_file: Path, head: Callable[..., str], tmp_path: Path) -> None:
    path = head("ss3", "residue_classes", tuple("HEC"))
    write(write(tmp_path / "d", PROTEINS), HEC, name="labels3")
    words = ("evaluate", "--task", "ss3", "--head", path, "--data", "d", "-m", model_file)
    table = run(*words)
    assert table.returncode == 0, table.stderr
    assert "ss3 on test_CB513: 6 proteins, 216 counted" in table.stderr
    lines = [line.split("\t") for line in table.stdout.splitlines()]
    assert lines[0] == ["metric", "value", "95 % from", "to"]
    assert [line[0] for line in lines if line[0] in ("accuracy", "H", "class")] == ["accuracy", "class", "H", "H"]
    content = json.loads(run(*words, "--json").stdout)
    assert f"{content['metrics']['accuracy']['value']:.4f}" == lines[1][1]
    assert content["metrics"]["calibration_error"]["low"] is None
    assert np.sum(content["confusion"]) == 216
    wrong = run(*words, "--where", "TYPE")
    assert (wrong.returncode, "--where TYPE: not of the form KEY=VALUE" in wrong.stderr) == (2, True)
