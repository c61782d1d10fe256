"""Predictions: in Python, as a stream, on the command line and in every format."""

import json
import subprocess
import sys
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import protembed
from protembed.backends.torch_backend import TorchBackend
from protembed.checkpoints import native as checkpoint
from protembed.checkpoints.find import find_head, heads_folder
from protembed.checkpoints.head_files import save_head
from protembed.errors import InputError, ModelError, OutOfMemoryError, ProtembedError, UsageError
from protembed.inference import predict as predictions
from protembed.inference.memory import available_memory
from protembed.inference.predict import PredictOptions, attach_heads, predict
from protembed.inference.predict_run import PredictionOutput, predict_run
from protembed.inference.run import RunOptions
from protembed.models.head_config import HeadCard, Kind
from protembed.models.heads.registry import make_head
from protembed.models.heads.run import design_head
from protembed.models.protein_model import ProteinModel
from protembed.outputs.plots import Track, draw_tracks
from protembed.sequences.batching import TokenBatch
from protembed.sequences.records import Record
from protembed.sequences.windows import Failure
from protembed.tasks.prediction import Predicted
from protembed.training.pretrain.config import ModelSection, make_card
from tests.conftest import SEQUENCES, Run, write_fasta

LIMIT = 40
LABELS: dict[str, tuple[Kind, tuple[str, ...]]] = {
    "ss3": ("residue_classes", tuple("HEC")),
    "binding": ("residue_flags", tuple("MNS")),
    "disorder": ("residue_values", ()),
    "localisation": ("sequence_class", ("Nucleus", "Cytoplasm")),
    "stability": ("sequence_value", ()),
    "contact": ("contacts", ()),
}
MakeHead = Callable[..., str]


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a limit of 40 residues."""
    card = make_card(ModelSection(name="limited", d_model=16, n_layers=2, n_heads=2, d_ff=32))
    model = ProteinModel(replace(card, encoder=replace(card.encoder, position="learned", max_length=LIMIT + 2)))
    model.initialise(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.3)
    path = tmp_path_factory.mktemp("model") / "limited.safetensors"
    checkpoint.save(model, path)
    return path


@pytest.fixture
def head(tmp_path: Path) -> MakeHead:
    """Write a head for a model file and return its path."""

    def make(model: Path, task: str, **changes: object) -> str:
        encoder = checkpoint.read_card(model)
        kind, labels = LABELS[task]
        torch.manual_seed(len(task))
        module = make_head(design_head(encoder, kind, outputs=max(1, len(labels)), hidden=8, kernel=3))
        card = HeadCard(
            task=task, config=module.config, encoder=encoder.name, encoder_sha256=encoder.sha256, labels=labels
        )
        path = tmp_path / f"{task}.{len(list(tmp_path.iterdir()))}.safetensors"
        save_head(module, replace(card, **changes), path)  # type: ignore[arg-type]
        return str(path)

    return make


def test_python(model_file: Path, head: MakeHead) -> None:
    model = protembed.load(model_file)
    ss, other = model.predict(["MKTAYIAKQR", "MK"], task=head(model_file, "ss3"))
    assert (ss.probabilities.shape, ss.probabilities.dtype) == ((10, 3), np.float32)
    np.testing.assert_allclose(ss.probabilities.sum(axis=1), 1, atol=1e-6)
    assert ss.labels == "".join("HEC"[number] for number in ss.probabilities.argmax(axis=1))
    assert len(other.labels) == 2
    (place,) = model.predict(["MKTAYIAKQR"], task=head(model_file, "localisation"))
    assert place.labels in ("Nucleus", "Cytoplasm")
    assert place.probabilities.shape == (2,)
    (stable,) = model.predict(["MKTAYIAKQR"], task=head(model_file, "stability"))
    assert stable.values.shape == ()
    for wrong, prediction in (("labels", stable), ("probabilities", stable), ("values", ss)):
        with pytest.raises(UsageError, match="has no"):
            getattr(prediction, wrong)


def test_temperature_and_scale(model_file: Path, head: MakeHead) -> None:
    def fresh(path: str) -> protembed.inference.predict.Prediction:
        return protembed.load(model_file).predict(["MKTAYIAKQR"], task=path)[0]

    plain, cool = fresh(head(model_file, "ss3")).output, fresh(head(model_file, "ss3", temperature=2.0)).output
    expected = np.sqrt(plain) / np.sqrt(plain).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(cool, expected, atol=1e-6)
    plain, cool = fresh(head(model_file, "contact")).output, fresh(head(model_file, "contact", temperature=2.0)).output
    np.testing.assert_allclose(np.log(cool / (1 - cool)), np.log(plain / (1 - plain)) / 2, atol=1e-4)
    raw, scaled = (fresh(head(model_file, "disorder", **k)).values for k in ({}, {"scale": 3.0, "offset": -1.0}))
    np.testing.assert_allclose(scaled, raw * 3 - 1, atol=1e-6)


def test_several_tasks_come_from_one_pass(model_file: Path, head: MakeHead, monkeypatch: pytest.MonkeyPatch) -> None:
    model = protembed.load(model_file)
    paths = [head(model_file, task) for task in LABELS]
    passes = []
    encoder = model._backend._model.encoder  # type: ignore[attr-defined]
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda *a, **k: passes.append(1) or forward(*a, **k))
    together = [dict(found) for _, found in model.stream_predictions(list(SEQUENCES.values())[:2], paths)]
    assert len(passes) == 1
    assert [list(found) for found in together] == [list(LABELS)] * 2
    for path, task in zip(paths, LABELS, strict=True):
        for sequence, found in zip(list(SEQUENCES.values())[:2], together, strict=True):
            alone = model.predict([sequence], task=path)[0]
            np.testing.assert_allclose(alone.output, found[task].output, atol=1e-5)


def test_flags_of_residues(model_file: Path, head: MakeHead) -> None:
    (found,) = protembed.load(model_file).predict(["MKTAYIAKQRWWPPDE"], task=head(model_file, "binding"))
    best = found.probabilities.max(axis=1)
    expected = ["MNS"[row.argmax()] if row.max() > 0.5 else "-" for row in found.probabilities]
    assert found.labels == "".join(expected)
    assert found.probabilities.shape == (16, 3)
    assert 0 < best.min() < best.max() < 1


def run_all(backend: TorchBackend, paths: list[str], sequences: list[str], **options: object) -> list[object]:
    predictor, heads = attach_heads(backend, paths)
    records = [Record(str(number), sequence) for number, sequence in enumerate(sequences)]
    found = list(predict(records, predictor, heads, PredictOptions(**options)))  # type: ignore[arg-type]
    assert [item.record.id for item in found] == [record.id for record in records]
    return list(found)


def load_backend(path: Path) -> TorchBackend:
    return TorchBackend(checkpoint.load(path, device=torch.device("cpu")))


def test_budget_changes_nothing(model_file: Path, head: MakeHead) -> None:
    backend, paths = load_backend(model_file), [head(model_file, task) for task in LABELS]
    sequences = [sequence[:60] for sequence in SEQUENCES.values()]
    first = run_all(backend, paths, sequences)
    for budget in (1, 100):
        for one, other in zip(first, run_all(backend, paths, sequences, max_tokens=budget), strict=True):
            assert isinstance(one, Predicted)
            assert isinstance(other, Predicted)
            for task in LABELS:
                np.testing.assert_allclose(one.tasks[task].output, other.tasks[task].output, atol=1e-5)


def test_long_proteins_go_through_in_windows(limited: Path, head: MakeHead) -> None:
    backend = load_backend(limited)
    sequence = SEQUENCES["sp|P69905|HBA_HUMAN"][:100]
    paths = [head(limited, task) for task in ("ss3", "stability")]
    short, long, last = run_all(backend, paths, ["MKT", sequence, "MK"])
    assert all(isinstance(item, Predicted) for item in (short, long, last))
    assert isinstance(long, Predicted)
    assert len(long.tasks["ss3"].labels) == 100
    windows = [sequence[start : start + LIMIT] for start in (0, 30, 60)]
    parts = [item.tasks for item in run_all(backend, paths, windows) if isinstance(item, Predicted)]
    logits = [np.log(part["ss3"].output.astype(float)) for part in parts]  # but for a constant a residue
    np.testing.assert_allclose(long.tasks["ss3"].output[:30], np.exp(logits[0][:30]), atol=1e-5)
    np.testing.assert_allclose(long.tasks["ss3"].output[70:], np.exp(logits[2][10:]), atol=1e-5)
    assert long.tasks["stability"].values == pytest.approx(np.mean([p["stability"].values for p in parts]), abs=1e-5)


def test_contacts_of_a_long_protein_are_a_failure(limited: Path, head: MakeHead) -> None:
    paths = [head(limited, task) for task in ("ss3", "contact")]
    first, long, last = run_all(load_backend(limited), paths, ["MKT", "A" * 41, "MK"])
    assert isinstance(first, Predicted)
    assert isinstance(last, Predicted)
    assert isinstance(long, Failure)
    assert "41 residues are too many for the model at once" in long.reason
    skipped = run_all(load_backend(limited), paths[:1], ["A" * 41], long="skip")[0]
    assert isinstance(skipped, Failure)
    with pytest.raises(InputError, match="has 41 residues, more than 40"):
        run_all(load_backend(limited), paths[:1], ["A" * 41], long="error")


class Small(TorchBackend):
    """Has room for 30 tokens."""

    def predict(self, batch: TokenBatch, tasks: Collection[str]) -> dict[str, list[np.ndarray]]:  # type: ignore[override,type-arg]
        if len(batch.tokens) > 30:
            raise OutOfMemoryError("small")
        return dict(super().predict(batch, tasks))


def test_memory_that_is_short(limited: Path, head: MakeHead) -> None:
    model = checkpoint.load(limited, device=torch.device("cpu"))
    sequences = ["MKT", "A" * 20, "MKTAY", "A" * 29, "A" * 90, "MK"]
    found = run_all(Small(model), [head(limited, "ss3")], sequences)
    assert [isinstance(item, Failure) for item in found] == [False, False, False, True, True, False]
    assert isinstance(found[3], Failure)
    assert found[3].reason == "31 tokens do not fit into memory"


def test_a_map_that_does_not_fit(limited: Path, head: MakeHead, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = predictions._decode

    def decode(output: np.ndarray, card: HeadCard) -> np.ndarray:  # type: ignore[type-arg]
        if len(output) > 10:
            raise MemoryError
        return plain(output, card)

    monkeypatch.setattr(predictions, "_decode", decode)
    found = run_all(load_backend(limited), [head(limited, "contact")], ["MKT", "A" * 20, "MK"])
    assert [isinstance(item, Failure) for item in found] == [False, True, False]
    assert isinstance(found[1], Failure)
    assert found[1].reason == "what is predicted of 20 residues does not fit into memory"


def test_a_map_that_is_too_large_is_not_begun(limited: Path, head: MakeHead, monkeypatch: pytest.MonkeyPatch) -> None:
    heads, sequences = [head(limited, "contact"), head(limited, "ss3")], ["MKT", "A" * 20, "MK"]
    monkeypatch.setattr(predictions, "available_memory", lambda: 10_000)
    found = run_all(load_backend(limited), heads, sequences)
    assert [isinstance(item, Failure) for item in found] == [False, True, False]
    assert isinstance(found[1], Failure)
    assert found[1].reason == "22 tokens do not fit into memory"
    assert not any(isinstance(item, Failure) for item in run_all(load_backend(limited), heads[1:], sequences))
    monkeypatch.setattr(predictions, "available_memory", lambda: None)
    assert not any(isinstance(item, Failure) for item in run_all(load_backend(limited), heads, sequences))


def test_memory_as_linux_tells_it(tmp_path: Path) -> None:
    told = tmp_path / "meminfo"
    told.write_text("MemTotal:       24000 kB\nMemFree:         1 kB\nMemAvailable:    12000 kB\n")
    assert available_memory(told) == 12_288_000
    assert available_memory(tmp_path / "absent") is None


def test_output_that_is_not_finite(model_file: Path, head: MakeHead, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = load_backend(model_file)
    path = head(model_file, "ss3")
    backend.attach(Path(path))
    backend._heads["ss3"].outward.bias.fill_(float("nan"))  # type: ignore[operator,union-attr]
    (failure,) = run_all(backend, [path], ["MKT"])
    assert isinstance(failure, Failure)
    assert "the prediction of ss3 is not finite" in failure.reason


def test_heads_that_cannot_be_used(model_file: Path, limited: Path, head: MakeHead) -> None:
    model = protembed.load(model_file)
    with pytest.raises(ModelError, match=r"belongs to the encoder limited .* not to tiny"):
        model.predict(["MKT"], task=head(limited, "ss3"))
    with pytest.raises(UsageError, match="no task is called 'ss4'"):
        model.predict(["MKT"], task="ss4")
    with pytest.raises(ModelError, match=r"x\.safetensors: no such head"):
        model.predict(["MKT"], task="x.safetensors")
    with pytest.raises(ModelError, match="no head for ss3 is bundled with the model tiny") as caught:
        model.predict(["MKT"], task="ss3")
    assert "protembed train" in caught.value.hint
    with pytest.raises(ModelError, match="is not a task head"):
        model.predict(["MKT"], task=str(model_file))
    one, two = head(model_file, "ss3"), head(model_file, "ss3")
    with pytest.raises(UsageError, match="another head for ss3"):
        list(model.stream_predictions(["MKT"], [one, two]))
    with pytest.raises(UsageError, match="named twice"):
        list(model.stream_predictions(["MKT"], [one, one]))


def test_bundled_heads_are_found_by_model_and_task(
    model_file: Path, head: MakeHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protembed.checkpoints.find.weights_folder", lambda: tmp_path)
    heads_folder().mkdir()
    path = Path(head(model_file, "ss3")).rename(tmp_path / "heads" / "tiny-ss3.safetensors")
    assert find_head("ss3", checkpoint.read_card(model_file)).name == "tiny-ss3.safetensors"
    model = protembed.load(model_file)
    assert len(model.predict(["MKT"], task="ss3")[0].labels) == 3
    with pytest.raises(UsageError, match="the task ss3 is named twice"):
        list(model.stream_predictions(["MKT"], ["ss3", str(path)]))


PROTEINS = {"sp|P1|A": "MKTAYIAKQRWW", "b/c": "MKTAYI"}


def test_table(run: Run, model_file: Path, head: MakeHead, tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "in.fasta", PROTEINS)
    tasks = ",".join(head(model_file, task) for task in LABELS)
    result = run("predict", fasta, "-m", model_file, "--task", tasks)
    assert result.returncode == 0, result.stderr
    assert (
        "2 records, 18 residues: ss3, binding, disorder, localisation, stability, contact -> standard" in result.stderr
    )
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert lines[0] == ["id", "task", "position", "residue", "partner", "label", "value"]
    model = protembed.load(model_file)
    paths = dict(zip(LABELS, tasks.split(","), strict=True))
    assert [line[0] for line in lines[1:]] == sorted((line[0] for line in lines[1:]), reverse=True)
    for name, sequence in PROTEINS.items():
        own = {task: [line[2:] for line in lines if line[:2] == [name, task]] for task in LABELS}
        found = {task: model.predict([sequence], task=path)[0] for task, path in paths.items()}
        best = found["ss3"].probabilities.max(axis=1)
        assert own["ss3"] == [
            [str(i + 1), sequence[i], "", found["ss3"].labels[i], f"{best[i]:.4f}"] for i in range(len(sequence))
        ]
        assert "".join(line[3] for line in own["binding"]) == found["binding"].labels
        assert own["disorder"][2] == ["3", "T", "", "", f"{found['disorder'].values[2]:.4f}"]
        assert own["localisation"] == [
            ["", "", "", found["localisation"].labels, f"{found['localisation'].output.max():.4f}"]
        ]
        assert own["stability"] == [["", "", "", "", f"{found['stability'].values:.4f}"]]
        pairs = [(int(line[0]), int(line[2]), float(line[4])) for line in own["contact"]]
        assert all(
            j - i >= 6 and sequence[i - 1] == line[1] for (i, j, _), line in zip(pairs, own["contact"], strict=True)
        )
        assert [p for *_, p in pairs] == sorted((p for *_, p in pairs), reverse=True)
        assert len(pairs) == {12: 12, 6: 0}[len(sequence)]


def test_json_lines(run: Run, model_file: Path, head: MakeHead, tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "in.fasta", PROTEINS)
    tasks = ",".join(head(model_file, task) for task in LABELS)
    result = run("predict", fasta, "-m", model_file, "--task", tasks, "-o", "out.jsonl", "--plot", "pictures")
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    first, second = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert (first["id"], first["length"], list(first["tasks"])) == ("sp|P1|A", 12, list(LABELS))
    assert (len(first["tasks"]["ss3"]["labels"]), np.shape(first["tasks"]["ss3"]["probabilities"])) == (12, (12, 3))
    assert first["tasks"]["ss3"]["columns"] == ["H", "E", "C"]
    assert set(second["tasks"]["localisation"]["probabilities"]) == {"Nucleus", "Cytoplasm"}
    assert isinstance(second["tasks"]["stability"]["value"], float)
    assert len(second["tasks"]["disorder"]["values"]) == 6
    assert [len(first["tasks"]["contact"]["contacts"]), second["tasks"]["contact"]["contacts"]] == [12, []]
    pictures = sorted(path.name.partition(".")[0] for path in (tmp_path / "pictures").iterdir())
    assert pictures == ["b_c", "b_c", "sp_P1_A", "sp_P1_A"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "pictures").iterdir())


def test_fasta_of_labels(run: Run, model_file: Path, head: MakeHead, tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "in.fasta", PROTEINS)
    path = head(model_file, "ss3")
    labels = [found.labels for found in protembed.load(model_file).predict(list(PROTEINS.values()), task=path)]
    result = run("predict", "-", "-m", model_file, "--task", path, "--format", "fasta", stdin=fasta.read_text())
    expected = [f">{name}\n{sequence}\n{own}\n" for (name, sequence), own in zip(PROTEINS.items(), labels, strict=True)]
    assert result.stdout == "".join(expected), result.stderr
    other = run("predict", fasta, "-m", model_file, "--task", head(model_file, "contact"), "-o", "x.fasta")
    assert (other.returncode, "takes one task of residue labels" in other.stderr) == (2, True)


def test_hdf5_has_a_file_a_task(run: Run, model_file: Path, head: MakeHead, tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "in.fasta", PROTEINS)
    paths = {task: head(model_file, task) for task in ("ss3", "contact", "stability")}
    words = ("predict", fasta, "-m", model_file, "-o", "out.h5", "--task")
    assert run(*words, ",".join(paths.values())).returncode == 0
    assert sorted(path.name for path in tmp_path.glob("*.h5")) == ["out.contact.h5", "out.ss3.h5", "out.stability.h5"]
    model = protembed.load(model_file)
    for task, path in paths.items():
        with h5py.File(tmp_path / f"out.{task}.h5") as file:
            assert list(file) == ["sp|P1|A", "b_c"]
            assert (file.attrs["task"], file.attrs["labels"], bool(file.attrs["complete"])) == (
                task,
                "H\tE\tC" if task == "ss3" else "",
                True,
            )
            for dataset, found in zip(file.values(), model.predict(list(PROTEINS.values()), task=path), strict=True):
                np.testing.assert_allclose(dataset[()], found.output, atol=1e-3)
    again = run(*words, ",".join(paths.values()))
    assert (again.returncode, "out.ss3.h5 exists" in again.stderr) == (2, True)
    assert run(*words, paths["ss3"], "--overwrite").returncode == 0
    assert (tmp_path / "out.h5").exists()


def test_records_without_a_result(run: Run, limited: Path, head: MakeHead, tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "in.fasta", {"a": "MKTAYIAK", "long": "A" * 41, "z": "MKTAYIAK"})
    path = head(limited, "contact")
    result = run("predict", fasta, "-m", limited, "--task", path, "-o", "out.tsv")
    assert result.returncode == 3, result.stderr
    assert "1 records without a result, listed in out.tsv.failed.tsv" in result.stderr
    failed = (tmp_path / "out.tsv.failed.tsv").read_text().splitlines()
    assert (failed[0], failed[1].split("\t")[0], len(failed)) == ("id\treason", "long", 2)
    assert {line.split("\t")[0] for line in (tmp_path / "out.tsv").read_text().splitlines()} == {"id", "a", "z"}
    quiet = run("predict", fasta, "-m", limited, "--task", path, "-q")
    assert quiet.returncode == 3
    assert "line 3: record 'long' has no result: 41 residues are too many" in quiet.stderr
    assert quiet.stdout == (tmp_path / "out.tsv").read_text()
    assert run("predict", fasta, "-m", limited, "--task", path, "-o", "out.h5").returncode == 3
    assert (tmp_path / "out.failed.tsv").read_text().splitlines() == failed
    assert (tmp_path / "out.tsv.failed.tsv").read_text().splitlines() == failed
    with pytest.raises(InputError, match="1 proteins have more than 40 residues, the longest 41"):
        predict_run([str(fasta)], load_backend(limited), PredictOptions(long="error"), PredictionOutput(tasks=(path,)))


@pytest.mark.parametrize(
    ("tasks", "output", "message"),
    [
        ("ss4", {}, "no task is called 'ss4'"),
        ("", {}, "no task is named"),
        ("ss3", {}, "no head for ss3 is bundled"),
        ("HEAD", {"format": "h5"}, "HDF5 cannot go to standard output"),
        ("HEAD", {"out": "in.fasta", "format": "fasta"}, "in.fasta is an input, too"),
        ("HEAD", {"out": "in.fasta", "format": "tsv"}, "the ending .fasta is not one of tsv"),
        ("HEAD", {"out": "other.tsv"}, "other.tsv exists"),
        ("HEAD", {"out": "no/x.tsv"}, "no such folder"),
        ("PLACE", {"plots": "x"}, "--plot has nothing to draw"),
        ("HEAD", {"unknown": "error"}, "has the letter J"),
    ],
)
def test_mistakes_are_told_before_computing(
    model_file: Path,
    head: MakeHead,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tasks: str,
    output: dict[str, str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"HEAD": head(model_file, "ss3"), "PLACE": head(model_file, "localisation")}
    write_fasta(tmp_path / "in.fasta", {"a": "MKJ"})
    (tmp_path / "other.tsv").write_text("precious")
    before = sorted(tmp_path.iterdir())
    names = tuple(given.get(name, name) for name in tasks.split(",") if name)
    told: dict[str, Any] = {key: Path(word) if key in ("out", "plots") else word for key, word in output.items()}
    running = RunOptions(unknown=told.pop("unknown", "x"))
    backend = load_backend(model_file)
    monkeypatch.setattr(backend, "predict", lambda *_: pytest.fail("computed something"))
    with pytest.raises(ProtembedError, match=message):
        list(predict_run(["in.fasta"], backend, PredictOptions(), PredictionOutput(tasks=names, **told), running).run())
    assert sorted(tmp_path.iterdir()) == before


def test_two_records_of_one_id(run: Run, model_file: Path, head: MakeHead, tmp_path: Path) -> None:
    (tmp_path / "in.fasta").write_text(">a\nMK\n>a\nMA\n")
    result = run("predict", "in.fasta", "-m", model_file, "--task", head(model_file, "ss3"))
    assert (result.returncode, result.stdout) == (2, "")
    assert "line 3: record 'a' has the same id" in result.stderr
    assert "hint: --duplicates suffix keeps both" in result.stderr


def test_outputs_that_cannot_be_written(run: Run, model_file: Path, head: MakeHead, tmp_path: Path) -> None:
    write_fasta(tmp_path / "in.fasta", {"a": "MKTAYIAK"})
    words = ("predict", "in.fasta", "-m", model_file, "--task", head(model_file, "ss3"))
    result = run(*words, "-o", f"{'x' * 250}.tsv")
    assert (result.returncode, result.stderr.count("\n")) == (2, 2)
    assert "x.tsv: cannot be written (File name too long)" in result.stderr
    (tmp_path / "out.h5.partial").mkdir()
    result = run(*words, "-o", "out.h5")
    assert result.returncode == 2
    assert "--resume goes on with it, --overwrite begins again" in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_table_on_a_full_disk() -> None:
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "protembed", "predict", "--task", "list"]
        result = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (result.returncode, result.stderr) == (
        2,
        "error: standard output cannot be written (No space left on device)\n",
    )


def test_list_of_tasks(run: Run) -> None:
    result = run("predict", "--task", "list")
    assert result.returncode == 0, result.stderr
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert rows[0] == ["task", "predicts", "labels", "metric", "head"]
    assert [row[0] for row in rows[1:4]] == ["ss3", "ss8", "contact"]
    assert rows[1][2:4] == ["H E C", "accuracy"]


def test_tracks_of_every_size(tmp_path: Path) -> None:
    for length in (1, 2, 400):
        classes = Track(name="$ss", values=np.arange(length) % 3, classes=("H", "E", "-"))
        draw_tracks(
            [classes, Track(name="z", values=np.zeros(length))], tmp_path / f"{length}.png", title="$x" * length
        )
        assert (tmp_path / f"{length}.png").read_bytes().startswith(b"\x89PNG")
