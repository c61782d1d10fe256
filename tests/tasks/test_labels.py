"""Labelled proteins in every form, and one clear error for each way in which they can be wrong."""

import lzma
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protembed.errors import InputError, UsageError
from protembed.models.head_config import Kind
from protembed.tasks import TASKS, Task, find_task, own_task
from protembed.tasks.labels.dataset import same_split
from tests.parity.test_reference import REFERENCE

FASTA = ">a SET=train\nMKTAY\n>b SET=train\nMK\n>c SET=val\nMKT\n>d SET=test_CB513\nMKTW\n"
LABELS = ">a SET=train\nHHEEC\n>b SET=train\nCC\n>c SET=val\nHEC\n>d SET=test_CB513\nHHXE\n"
MASK = ">a\n11110\n>b\n11\n>c\n111\n>d\n1101\n"


def folder(path: Path, **files: str) -> Path:
    """Write NAME=content as NAME.fasta."""
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        (path / f"{name}.fasta").write_text(content)
    return path


@pytest.fixture
def ss3(tmp_path: Path) -> Path:
    return folder(tmp_path / "ss", sequences=FASTA, labels3=LABELS, mask=MASK)


def test_residue_labels_and_mask(ss3: Path) -> None:
    data = TASKS["ss3"].read(ss3, split="train")
    assert [protein.record.id for protein in data.proteins] == ["a", "b"]
    assert data.labels == ("H", "E", "C")
    assert data.proteins[0].target.tolist() == [0, 0, 1, 1, 2]
    assert data.proteins[0].counts.tolist() == [True, True, True, True, False]
    assert data.class_counts().tolist() == [2, 2, 2]
    test = TASKS["ss3"].read(ss3, split="cb513").proteins
    assert [protein.record.id for protein in test] == ["d"], "an X under the mask is no label, and no error"
    assert len(TASKS["ss3"].read(ss3).proteins) == 4
    data.require_every_class()


def test_packed_files_and_another_order(tmp_path: Path) -> None:
    for name, content in (("sequences", FASTA), ("labels3", "".join(f">{x}" for x in LABELS.split(">")[:0:-1]))):
        (tmp_path / f"{name}.fasta.xz").write_bytes(lzma.compress(content.encode()))
    data = TASKS["ss3"].read(tmp_path, split="valid")
    assert data.proteins[0].target.tolist() == [0, 1, 2]
    assert data.proteins[0].counts.all()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"labels3": LABELS.replace("HHEEC", "HHEE")}, r"line 1: record 'a' has 4 labels for 5 residues"),
        ({"labels3": LABELS.replace("HHEEC", "HHEECC")}, r"record 'a' has 6 labels for 5 residues"),
        ({"labels3": LABELS.replace("HHEEC", "HHZEC")}, r"record 'a': the label 'Z' of residue 3 is not in the set"),
        ({"mask": MASK.replace("11110", "1111")}, r"record 'a' has 4 mask entries for 5 residues"),
        ({"mask": MASK.replace(">a", ">z")}, r"record 'a' has no mask in"),
        ({"labels3": LABELS.replace(">a", ">z")}, r"record 'a' has no labels in"),
        ({"labels3": LABELS + ">z\nH\n"}, r"'z' has no sequence in"),
        ({"labels3": LABELS + ">a\nH\n"}, r"labels3.fasta, line 9: the id 'a' is empty or stands here twice"),
        ({"sequences": FASTA.replace("MKTAY", "MK1AY")}, r"record 'a' has '1' at residue 3"),
    ],
)
def test_residue_labels_that_are_wrong(ss3: Path, files: Mapping[str, str], message: str) -> None:
    folder(ss3, **files)
    with pytest.raises(InputError, match=message):
        TASKS["ss3"].read(ss3)


def test_split_that_is_empty(ss3: Path) -> None:
    with pytest.raises(InputError, match=r"no proteins of SET=test \(0 left out\)") as caught:
        TASKS["ss3"].read(ss3, split="test")
    assert caught.value.hint == "It has test_CB513, train, val."
    assert [same_split(*names) for names in (("val", "VALID"), ("test_X", "x"), ("test", "test_X"))] == [
        True,
        True,
        False,
    ]


def test_class_without_training_examples(ss3: Path) -> None:
    folder(ss3, labels3=LABELS.replace("HHEEC", "HHEEE").replace("CC", "HH"))
    with pytest.raises(InputError, match=r"1 of 3 classes have no training example, the first is 'C'"):
        TASKS["ss3"].read(ss3, split="train").require_every_class()


HEADERS = ">a TARGET=Glob SET=train\nMKT\n>b TARGET=Mem SET=train VALIDATION=True\nMKW\n>c TARGET=Glob SET=test\nM\n"


def test_biotrainer_headers(tmp_path: Path) -> None:
    (tmp_path / "x.fasta").write_text(HEADERS)
    task = own_task("place", "sequence_class")
    data = task.read(tmp_path / "x.fasta")
    assert (data.labels, [int(protein.target) for protein in data.proteins]) == (("Glob", "Mem"), [0, 1, 0])
    assert [p.record.id for p in task.read(tmp_path, split="val").proteins] == ["b"]
    given = task.read(tmp_path, split="train", labels=("Mem", "Glob"))
    assert [int(protein.target) for protein in given.proteins] == [1]
    with pytest.raises(InputError, match=r"x.fasta, line 1: record 'a': the label 'Glob' is not in the set"):
        task.read(tmp_path, labels=("Mem",))


def test_headers_with_residue_labels(tmp_path: Path) -> None:
    (tmp_path / "x.fasta").write_text(">a TARGET=HEC MASK=110\nMKT\n")
    (protein,) = TASKS["ss3"].read(tmp_path).proteins
    assert (protein.target.tolist(), protein.counts.tolist()) == ([0, 1, 2], [True, True, False])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nan", "line 1: record 'a': the target is NaN or infinite"),
        ("-inf", "NaN or infinite"),
        ("high", "the target is not a number"),
        ("1;2", "has 2 values, and one is expected"),
    ],
)
def test_values_that_are_wrong(tmp_path: Path, target: str, message: str) -> None:
    (tmp_path / "x.fasta").write_text(f">a TARGET={target}\nMKT\n")
    with pytest.raises(InputError, match=message):
        TASKS["stability"].read(tmp_path)


def test_header_without_target(tmp_path: Path) -> None:
    (tmp_path / "x.fasta").write_text(">a SET=train\nMKT\n")
    with pytest.raises(InputError, match=r"line 1: record 'a' has no TARGET="):
        TASKS["stability"].read(tmp_path)


@pytest.mark.parametrize(("name", "comma"), [("x.csv", ","), ("x.tsv", "\t")])
def test_tables(tmp_path: Path, name: str, comma: str) -> None:
    rows = [["Sequence", "Target", "set", "kind"], ["MKT", "1.5", "train", "x"], ["MKW", "-2", "test", "y"]]
    (tmp_path / name).write_text("\n".join(comma.join(row) for row in rows) + "\n")
    data = TASKS["stability"].read(tmp_path, where={"KIND": "y"})
    assert [(p.record.id, float(p.target)) for p in data.proteins] == [("2", -2.0)]
    assert data.left_out == {"not KIND=y": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,seq\na,MKT\n", r"no column for the label \(target or label"),
        ("id,target\na,1\n", r"no column for the sequence"),
        ("seq,target\nMKT\n", "x.csv, line 2: has not as many fields as the header, 2"),
        ("seq,target\nMKT,1,2\n", "x.csv, line 2: has not as many fields"),
        ("seq,target\n,1\n", "x.csv, line 2: record '1' has no residues"),
        ("seq,target\nMKT,1\nMKW,\n", "x.csv, line 3: the label is empty"),
        ("seq,target,target\nMKT,1,2\n", "x.csv: two columns are called 'target'"),
        (f'seq,target\nMKT,1\n"MKW,{"2" * 200_000}\n', "x.csv, line 3: cannot be read as a table"),
        ("seq,target\nMKT,1e300\n", "x.csv, line 2: record '1': the target is NaN or infinite"),
    ],
)
def test_tables_that_are_wrong(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        TASKS["stability"].read(tmp_path)


def test_scores_of_residues(tmp_path: Path) -> None:
    folder(tmp_path, sequences=">a SET=train\nMKT\n")
    scores = tmp_path / "scores.tsv"
    scores.write_text("id\tset\tscores\na\ttrain\t999 -1.5 12\n")
    (protein,) = TASKS["disorder"].read(tmp_path, split="train").proteins
    assert protein.target.tolist() == [999, -1.5, 12]
    assert protein.counts.tolist() == [False, True, True]
    scores.write_text("id\tset\tscores\na\ttrain\t1 2\n")
    with pytest.raises(InputError, match="record 'a' has 2 values for 3 residues"):
        TASKS["disorder"].read(tmp_path)
    scores.write_text("id\tset\tscores\na\ttrain\t1 nan 2\n")
    with pytest.raises(InputError, match="NaN or infinite"):
        TASKS["disorder"].read(tmp_path)


def save_coordinates(path: Path, coordinates: list[list[float]]) -> None:
    np.savez(
        path,
        ids=np.array([b"p"]),
        offsets=np.array([0, len(coordinates)]),
        residues=np.frombuffer(b"MKTW"[: len(coordinates)], dtype=np.uint8),
        coords=np.array(coordinates, dtype=np.int16),
    )


def test_coordinates_become_contacts(tmp_path: Path) -> None:
    save_coordinates(tmp_path / "test.npz", [[0, 0, 0], [79, 0, 0], [0, 81, 0], [-32768] * 3])
    save_coordinates(tmp_path / "train.npz", [[0, 0, 0]])
    (protein,) = TASKS["contact"].read(tmp_path, split="test").proteins
    contacts, counted = protein.contacts()
    assert (protein.record.id, protein.record.sequence) == ("p", "MKTW")
    assert (contacts[0, 1], contacts[0, 2], contacts[0, 3]) == (True, False, False)
    assert counted[0, 2]
    assert not counted[3].any()
    assert not counted[:, 3].any()
    (tmp_path / "train.npz").write_bytes(b"PK\3\4")
    with pytest.raises(InputError, match=r"train\.npz: cannot be read as proteins with coordinates"):
        TASKS["contact"].read(tmp_path, split="train")


MEMBRANE = ">a SET=cv0 SOURCE=opm TYPE=alpha\nMKTAYI\n>b SET=cv0 SOURCE=signalp6 TYPE=globular\nMK\n"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ids": np.array(["p"])}, "ids are <U1"),
        ({"offsets": np.array([0])}, "for 1 ids"),
        ({"offsets": np.array([0.0, 2.0])}, "offsets are float64"),
        ({"offsets": np.array([0, 9])}, "from 0 to 2"),
        ({"coords": np.zeros(2, dtype=np.int16)}, "for 2 residues"),
        ({"coords": np.zeros((2, 2), dtype=np.int16)}, "for 2 residues"),
    ],
)
def test_coordinates_that_are_wrong(tmp_path: Path, changed: Mapping[str, Any], message: str) -> None:
    save_coordinates(tmp_path / "test.npz", [[0, 0, 0], [79, 0, 0]])
    with np.load(tmp_path / "test.npz") as file:
        arrays = {**file, **changed}
    np.savez(tmp_path / "test.npz", **arrays)
    with pytest.raises(InputError, match=rf"test\.npz: cannot be read as proteins with coordinates .*{message}"):
        TASKS["contact"].read(tmp_path, split="test")


def test_coordinates_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "test.npz").write_bytes(b"")
    with pytest.raises(InputError, match=r"test\.npz: cannot be read"):
        TASKS["contact"].read(tmp_path, split="test")
    (tmp_path / "x.csv").write_text("sequence,label\nMKT,1\n")
    with pytest.raises(InputError, match="line 2: record '1': the label is not coordinates"):
        TASKS["contact"].read(tmp_path / "x.csv")


def test_membrane_leaves_restricted_records_out(tmp_path: Path) -> None:
    folder(tmp_path, sequences=MEMBRANE, labels=MEMBRANE.replace("MKTAYI", "UHh12b").replace("MK", "S1"))
    data = TASKS["membrane"].read(tmp_path)
    assert [protein.record.id for protein in data.proteins] == ["a"]
    assert data.left_out == {"SOURCE=signalp6": 1}
    assert "".join(data.labels[k] for k in data.proteins[0].target[1:]) == "HHioB"
    assert data.proteins[0].counts.tolist() == [False, *[True] * 5]
    asked = TASKS["membrane"].read(tmp_path, where={"SOURCE": "signalp6"})
    assert [protein.record.id for protein in asked.proteins] == ["b"]
    assert TASKS["membrane"].read(tmp_path, where={"TYPE": "alpha"}, longest=6).left_out == {"not TYPE=alpha": 1}
    with pytest.raises(InputError, match=r"no proteins \(2 left out\)"):
        TASKS["membrane"].read(tmp_path, longest=5)


def test_binding_is_three_answers(tmp_path: Path) -> None:
    folder(tmp_path, sequences=">a\nMKTAY\n", labels=">a\n01357\n")
    data = TASKS["binding"].read(tmp_path)
    assert data.labels == ("M", "N", "S")
    rows = [[False] * 3, [True, False, False], [True, True, False], [True, False, True], [True] * 3]
    assert data.proteins[0].target.tolist() == rows
    assert data.class_counts().tolist() == [4, 2, 2]
    folder(tmp_path, labels=">a\n01358\n")
    with pytest.raises(InputError, match="the label '8' of residue 5 is not in the set"):
        TASKS["binding"].read(tmp_path)


def test_own_flags(tmp_path: Path) -> None:
    folder(tmp_path, sequences=">a\nMKT\n", labels=">a\nP-P\n")
    (protein,) = own_task("phospho", "residue_flags", ("P",)).read(tmp_path).proteins
    assert protein.target.tolist() == [[True], [False], [True]]


@pytest.mark.parametrize("name", ["two", "none", "absent"])
def test_folder_that_says_too_little(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name != "absent":
        folder(path, **({"x": HEADERS, "y": HEADERS} if name == "two" else {}))
    message = {"two": "found x.fasta, y.fasta", "none": "found none", "absent": "no such file or folder"}[name]
    with pytest.raises(InputError, match=message):
        TASKS["localisation"].read(path)


def test_unknown_task_lists_all() -> None:
    with pytest.raises(UsageError, match="no task is called 'ss4'") as caught:
        find_task("ss4")
    assert all(name in caught.value.hint for name in TASKS)


def test_tasks_are_whole() -> None:
    names = "ss3 ss8 contact remote_homology fluorescence stability disorder localisation membrane conservation binding"
    assert list(TASKS) == names.split()
    for task in TASKS.values():
        assert task.metric
        assert set(task.meanings) <= set(task.coding.labels)


def write_lmdb(path: Path, records: list[dict[str, Any]], count: int | None = None) -> None:
    lmdb = pytest.importorskip("lmdb")
    path.parent.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(path), map_size=2**20) as database, database.begin(write=True) as transaction:
        transaction.put(b"num_examples", pickle.dumps(len(records) if count is None else count))
        for number, record in enumerate(records):
            transaction.put(str(number).encode(), pickle.dumps(record, protocol=3))


LMDB: list[tuple[str, str, dict[str, Any], Any]] = [
    ("ss3", "secondary_structure/secondary_structure_cb513", {"ss3": np.array([0, 1, 2])}, [0, 1, 2]),
    ("ss8", "secondary_structure/secondary_structure_cb513", {"ss8": np.array([7, 0, 1])}, [7, 0, 1]),
    ("remote_homology", "remote_homology/remote_homology_test_fold_holdout", {"fold_label": 17}, 0),
    ("fluorescence", "fluorescence/fluorescence_test", {"log_fluorescence": np.array([2.5])}, 2.5),
    ("contact", "proteinnet/proteinnet_test", {"tertiary": np.zeros((3, 3))}, [[0.0] * 3] * 3),
]


@pytest.mark.parametrize(("name", "path", "fields", "expected"), LMDB)
def test_lmdb_of_tape(tmp_path: Path, name: str, path: str, fields: dict[str, Any], expected: Any) -> None:
    mask = np.array([1.0, 1.0, 0.0])
    write_lmdb(tmp_path / f"{path}.lmdb", [{"primary": "MKT", "id": b"x1", "valid_mask": mask, **fields}])
    task, split = TASKS[name], path.partition("_test_")[2] or path.rpartition("_")[2]
    for place in (tmp_path, tmp_path / path.partition("/")[0], tmp_path / f"{path}.lmdb"):
        (protein,) = task.read(place, split=split).proteins
        assert (protein.record.id, protein.target.tolist()) == ("x1", expected)
        if protein.counts.ndim:
            assert protein.counts.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("record", "count", "message"),
    [
        ({"primary": "MKT"}, None, "record 0: has no field 'ss3'"),
        ({"primary": "MKT", "ss3": np.array([0, 1, 5])}, None, "record 0: a label is not one of 0 to 2"),
        ({"primary": "MKT", "ss3": np.array([0, 1])}, None, "record '0' has 2 labels for 3 residues"),
        ({"primary": "MKT", "ss3": np.array([0, 1, 2])}, 2, "record 1: not a data set in TAPE's LMDB form"),
    ],
)
def test_lmdb_that_is_wrong(tmp_path: Path, record: dict[str, Any], count: int | None, message: str) -> None:
    path = tmp_path / "secondary_structure_test.lmdb"
    write_lmdb(path, [record], count)
    with pytest.raises(InputError, match=message):
        TASKS["ss3"].read(path)


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="no reference data; PROTEMBED_REFERENCE names its folder")
@pytest.mark.parametrize("name", ["ss3", "ss8", "contact", "remote_homology", "fluorescence", "stability"])
def test_lmdb_of_the_reference(name: str) -> None:
    pytest.importorskip("lmdb")
    task: Task = TASKS[name]
    splits = {"ss3": "cb513", "ss8": "cb513", "remote_homology": "test_fold_holdout"}
    data = task.read(REFERENCE / "tape_lmdb", split=splits.get(name, "test"))
    (path,) = (REFERENCE / "tape_lmdb" / task.files.lmdb).glob("*.npz")
    with np.load(path) as arrays:
        for number, protein in enumerate(data.proteins):
            field = arrays[f"{number}.{task.files.lmdb_field}"]
            assert protein.record.sequence == str(arrays[f"{number}.primary"])
            kind: Kind = task.kind
            if kind == "sequence_class":
                assert data.labels[int(protein.target)] == str(field)
            else:
                np.testing.assert_allclose(protein.target, np.squeeze(field) if kind == "sequence_value" else field)
            if f"{number}.valid_mask" in arrays:
                assert protein.counts.tolist() == arrays[f"{number}.valid_mask"].astype(bool).tolist()
    assert len(data.proteins) == 5
