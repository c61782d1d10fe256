"""Splits: no sequence that is measured on was trained on."""

import sys
from pathlib import Path

import pytest

from protembed.checkpoints.head_arrays import read_head_card
from protembed.errors import InputError
from protembed.tasks import TASKS
from protembed.tasks.labels.encoding import Labelled
from protembed.training.finetune.config import load_task_config
from protembed.training.finetune.splits import read_splits
from protembed.training.finetune.trainer import HeadTrainer
from tests.conftest import ROOT
from tests.training.test_finetune import TOML, proteins, write_targets

DATA = ROOT.parent / "shared" / "data"


def make(folder: Path, model: Path, lines: str, *changes: str) -> HeadTrainer:
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "all.fasta").write_text(lines)
    path = folder / "task.toml"
    path.write_text(TOML.format(folder=folder, model=model, name="own", kind="sequence_value"))
    return HeadTrainer(load_task_config(path, ["train.overwrite=true", *changes]))


def record(number: int, sequence: str, split: str) -> str:
    return f">P{number} TARGET={number} SET={split}\n{sequence}\n"


def ids(some: list[Labelled]) -> list[str]:
    return [protein.record.id for protein in some]


def test_a_tested_or_validating_sequence_is_left_out_of_training_and_counted(tmp_path: Path, model_file: Path) -> None:
    sequences = list(proteins(8).values())
    lines = [record(number, sequence, "train") for number, sequence in enumerate(sequences)]
    lines += [
        record(10, sequences[0].lower(), "test"),
        record(11, "MKTAYIAKQR", "test"),
        record(12, sequences[1], "val"),
        record(13, "MKTAYIAKQR", "val"),
        record(14, "MKVVVVVVWW", "val"),
    ]
    trainer = make(tmp_path, model_file, "".join(lines), 'data.test=["test"]', "train.epochs=1")
    splits = trainer.splits
    assert ids(splits.train) == ["P2", "P3", "P4", "P5", "P6", "P7"]
    assert ids(splits.valid) == ["P12", "P14"]
    assert ids(splits.test["test"]) == ["P10", "P11"], "the test set stays whole"
    assert splits.notes == ("3 proteins left out: their sequences are in the validation or test set, too",)
    assert splits.notes[0] in trainer.introduce()
    for _ in trainer.run():
        pass
    facts = read_head_card(trainer.result).training
    assert (facts["proteins"], facts["shared_with_valid_or_test"]) == (6, "3 proteins, left out")


def test_equal_sequences_are_never_divided(tmp_path: Path, model_file: Path) -> None:
    sequences = list(proteins(20).values())
    lines = [record(number, sequences[number % 20], "train") for number in range(60)]
    for seed in range(3):
        splits = make(tmp_path, model_file, "".join(lines), "data.valid_share=0.2", f"train.seed={seed}").splits
        apart = [{protein.record.sequence for protein in some} for some in (splits.train, splits.valid)]
        assert (len(splits.train), len(splits.valid), apart[0] & apart[1]) == (48, 12, set())
        assert splits.shared == 0


@pytest.mark.parametrize("form", ["fasta", "csv"])
def test_clusters_are_never_divided_wherever_they_are_named(tmp_path: Path, model_file: Path, form: str) -> None:
    sequences = list(proteins(40).values())
    lines = [f">P{n} TARGET={n} CLUSTER=c{n // 4} protein number {n}\n{s}\n" for n, s in enumerate(sequences)]
    if form == "csv":
        lines = ["id,sequence,target,Cluster\n", *(f"P{n},{s},{n},c{n // 4}\n" for n, s in enumerate(sequences))]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"all.{form}").write_text("".join(lines))
    path = tmp_path / "task.toml"
    path.write_text(TOML.format(folder=tmp_path, model=model_file, name="own", kind="sequence_value"))
    splits = HeadTrainer(load_task_config(path, ["data.valid_share=0.2"])).splits
    train, valid = ({int(name[1:]) // 4 for name in ids(some)} for some in (splits.train, splits.valid))
    assert (len(splits.valid), train & valid) == (8, set())


@pytest.mark.parametrize("name", ["val", "test"])
def test_training_on_what_is_measured_is_refused(tmp_path: Path, model_file: Path, name: str) -> None:
    some = list(enumerate(proteins(20).values()))
    lines = "".join(record(n, s, "train") + record(n + 50, s, name) for n, s in some)
    with pytest.raises(InputError, match="no training protein is left: the sequences of all") as caught:
        make(tmp_path, model_file, lines, 'data.test=["test"]' if name == "test" else "train.epochs=1")
    assert "name different proteins" in caught.value.hint


def test_negatives_that_are_tested_are_left_out(tmp_path: Path, model_file: Path) -> None:
    folder, more = tmp_path / "data", tmp_path / "more"
    folder.mkdir()
    rows = [(name, sequence, "ab" * 30) for name, sequence in proteins(20).items()]
    for name, part in (("sequences", 1), ("labels", 2)):
        sets = ["test" if number < 5 else "val" if number < 9 else "train" for number in range(20)]
        lines = [f">{row[0]} SET={s}\n{row[part][: len(row[1])]}\n" for row, s in zip(rows, sets, strict=True)]
        (folder / f"{name}.fasta").write_text("".join(lines))
    negatives = {f"N{number}": (sequence, 0) for number, sequence in enumerate([rows[0][1], rows[6][1], "MKV", "MKW"])}
    write_targets(more, negatives, ("train",))
    with (more / "all.fasta").open("a") as file:
        file.write(">N9 TARGET=0 SET=val\nMKTTT\n")
    path = tmp_path / "task.toml"
    path.write_text(TOML.format(folder=tmp_path, model=model_file, name="own", kind="residue_classes"))
    changes = (f'negatives.path="{more}/all.fasta"', "negatives.label=a", 'data.test=["test"]')
    splits = HeadTrainer(load_task_config(path, changes)).splits
    assert [name for name in ids(splits.train) if name[0] == "N"] == ["N2", "N3"]
    assert splits.shared == 2


def test_figures_of_the_benchmark_are_of_proteins_that_were_not_trained_on(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import accuracy

    sequences = list(proteins(30).values())
    lines = [record(number, sequence, "train" if number < 20 else "test") for number, sequence in enumerate(sequences)]
    (tmp_path / "all.fasta").write_text("".join([*lines, record(40, sequences[3], "test")]))
    (line,) = accuracy.measure(TASKS["stability"], tmp_path, [])
    assert (line.way, line.proteins, line.counted) == ("composition", 10, 10)


@pytest.mark.skipif(not DATA.is_dir(), reason="no folder of labelled data beside the repository")
@pytest.mark.parametrize(("name", "shared"), [("binding", 1), ("disorder", 0), ("membrane", 0)])
def test_shipped_configurations_train_on_nothing_that_they_test(name: str, shared: int) -> None:
    config = load_task_config(ROOT / "configs" / "tasks" / f"{name}.toml")
    place = DATA / Path(config.data.path).name
    changes = [f'data.path="{place}"', f'negatives.path="{DATA}/localisation/localisation.fasta.xz"']
    changes = changes if config.negatives.path else changes[:1]
    config = load_task_config(ROOT / "configs" / "tasks" / f"{name}.toml", changes)
    splits = read_splits(config, TASKS[name])
    assert splits.shared == shared
    measured = {p.record.sequence for proteins in (splits.valid, *splits.test.values()) for p in proteins}
    assert not measured & {protein.record.sequence for protein in splits.train}
