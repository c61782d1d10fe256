"""Whole labels or an error, in every format; and tables as spreadsheets write them."""

import csv
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protembed.errors import InputError
from protembed.tasks import TASKS, own_task
from protembed.tasks.labels.dataset import DataSet
from protembed.tasks.labels.fasta import attributes_of
from protembed.tasks.labels.rows import Files

CASES = Path(__file__).parent / "cases"
PLACES = ("Cell membrane", "Cell wall", "Endoplasmic lumen", "Endoplasmic reticulum")


def classes(path: Path) -> DataSet:
    return own_task("place", "sequence_class").read(path)


def names(data: DataSet) -> list[str]:
    return [data.labels[int(protein.target)] for protein in data.proteins]


def lmdb_of(folder: Path, name: str, records: list[Any]) -> Path:
    lmdb = pytest.importorskip("lmdb")
    path = folder / f"{name}.lmdb"
    with lmdb.open(str(path), map_size=2**20) as database, database.begin(write=True) as transaction:
        transaction.put(b"num_examples", pickle.dumps(len(records)))
        for number, record in enumerate(records):
            transaction.put(str(number).encode(), pickle.dumps(record, protocol=3))
    return path


def test_labels_of_several_words_are_read_whole() -> None:
    data = classes(CASES / "labels_with_spaces.fasta")
    assert data.labels == PLACES
    assert names(data)[:5] == [PLACES[0], PLACES[1], PLACES[3], PLACES[2], PLACES[0]]
    assert np.bincount([int(protein.target) for protein in data.proteins]).min() > 1
    assert len(own_task("place", "sequence_class").read(CASES / "labels_with_spaces.fasta", split="val").proteins) > 0


@pytest.mark.parametrize(
    "header",
    [
        "TARGET=Cell membrane",
        'TARGET="Cell membrane"',
        "TARGET='Cell membrane' SET=train",
        "SET=train TARGET=Cell membrane",
        "Some protein OS=Homo sapiens OX=9606 TARGET=Cell membrane CLUSTER=c1",
        'TARGET=" Cell membrane "   SET=train',
        "SET=train\tTARGET=Cell membrane\tLENGTH=3",
    ],
)
def test_headers_give_the_whole_value(tmp_path: Path, header: str) -> None:
    (tmp_path / "x.fasta").write_text(f">a {header}\nMKT\n>b TARGET=other SET=train\nMKV\n")
    assert names(classes(tmp_path / "x.fasta")) == ["Cell membrane", "other"]


def test_attributes_end_where_the_next_one_begins() -> None:
    text = 'P1|X=3 free (n=1) text OS=Homo sapiens PH=a=b (pH=7) Q="one K=2 two" EMPTY= LAST=x y '
    # X stands in the id, so text up to the next attribute belongs to it; n= and pH= have no space before them.
    assert attributes_of(text) == {
        "X": "3 free (n=1) text",
        "OS": "Homo sapiens",
        "PH": "a=b (pH=7)",
        "Q": "one K=2 two",
        "EMPTY": "",
        "LAST": "x y",
    }
    assert attributes_of("P1 no attributes = none") == {}
    assert attributes_of("x" * 200_000 + " " * 200_000) == {}, "and that in no time"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("TARGET=", "has no TARGET="),
        ("TARGET=a TARGET=b", "its header has TARGET= twice"),
        ("TARGET=a SET=train SET=test", "its header has SET= twice"),
        ('TARGET="Cell membrane', "a quotation mark of TARGET= stands open"),
        ('TARGET="Cell" membrane', "a quotation mark of TARGET= stands open"),
        ('TARGET="Cell" or "wall"', "a quotation mark of TARGET= stands open"),
        ("TARGET=a SET=train of ours", "SET= is 'train of ours', and takes one word"),
        ("TARGET=a VALIDATION=True or so", "VALIDATION= is 'True or so', and takes one word"),
        ("TARGET=a VALIDATION=yes", "VALIDATION= is 'yes', not True or False"),
        ("TARGET=Cell\tmembrane", r"the label 'Cell\\tmembrane' is empty, or holds a tab"),
        ("TARGET=Cell\x07membrane", r"the label 'Cell\\x07membrane' is empty, or holds a tab"),
        ("TARGET=\x1b[31mred", "or another control character"),
        ("TARGET=Cell\u202eenarbmem", "or another control character"),
    ],
)
def test_headers_that_could_be_read_in_two_ways_are_refused(tmp_path: Path, header: str, message: str) -> None:
    (tmp_path / "x.fasta").write_text(f">a {header}\nMKT\n>b TARGET=b\nMKT\n", encoding="utf-8")
    with pytest.raises(InputError, match=rf"x\.fasta, line 1: record 'a'.*{message}") as caught:
        classes(tmp_path / "x.fasta")
    assert caught.value.hint


def test_text_after_a_number_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "x.fasta").write_text(">a TARGET=1.5 kinase\nMKT\n")
    with pytest.raises(InputError, match="the target is not a number") as caught:
        TASKS["stability"].read(tmp_path)
    assert "free text stands before the first one" in caught.value.hint


@pytest.mark.parametrize(("name", "mark"), [("x.csv", ","), ("x.tsv", "\t"), ("x.csv", ";"), ("x.csv", "\t")])
def test_tables_give_the_whole_field(tmp_path: Path, name: str, mark: str) -> None:
    rows = [("id", "sequence", "target"), ("a", "MKT", "Cell membrane"), ("b", "MKV", f'"wall{mark} outer"')]
    (tmp_path / name).write_text("\n".join(mark.join(row) for row in rows))
    if mark == "\t":
        with pytest.raises(InputError, match="holds a tab"):
            classes(tmp_path / name)
    else:
        assert names(classes(tmp_path / name)) == ["Cell membrane", f"wall{mark} outer"]


@pytest.mark.parametrize("label", ["a\tb", "a\nb", "a\r\nb", "a\x0bb", "\x1b]0;x\x07", "a\u2028b"])
def test_labels_that_would_break_a_table_are_refused_in_all_formats(tmp_path: Path, label: str) -> None:
    (tmp_path / "x.csv").write_text(f'sequence,target\nMKT,"{label}"\nMKV,b\n', encoding="utf-8", newline="")
    fields = {"primary": "MKT", "id": "p", "place": label}
    places = {"x.csv": own_task("place", "sequence_class"), "place_test.lmdb": TASKS["remote_homology"]}
    lmdb_of(tmp_path, "place_test", [fields | {"fold_label": label}])
    for name, task in places.items():
        with pytest.raises(InputError, match="holds a tab, a line break or another control character"):
            task.read(tmp_path / name)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("Cell membrane", "Cell membrane"),
        (b"Cell membrane", "Cell membrane"),
        (np.array("Cell membrane"), "Cell membrane"),
        (np.array([7]), "7"),
        (7, "7"),
    ],
)
def test_lmdb_gives_the_whole_label(tmp_path: Path, label: object, expected: str) -> None:
    path = lmdb_of(tmp_path, "remote_homology_test", [{"primary": "MKT", "fold_label": label}])
    assert TASKS["remote_homology"].read(path).labels == (expected,)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "'fold_label' is None, and no label can be read"),
        ({"a": 1}, "no label can be read"),
        (np.array([1, 2]), "has 2 labels, and one class is expected"),
        (["a", "b"], "several texts, and one is expected"),
        (float("nan"), "the target is NaN or infinite"),
        ("", "is empty, or holds a tab"),
        (np.array([]), "no label can be read"),
    ],
)
def test_lmdb_labels_of_nonsense_are_refused(tmp_path: Path, label: object, message: str) -> None:
    path = lmdb_of(tmp_path, "remote_homology_test", [{"primary": "MKT", "fold_label": label}])
    with pytest.raises(InputError, match=rf"lmdb, record 0.*{message}"):
        TASKS["remote_homology"].read(path)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("ss3", {"ss3": np.array([0.0, 1, 2])}, "a label is not one of 0 to 2"),
        ("ss3", {"ss3": np.array([[0, 1, 2]])}, "a label is not one of 0 to 2"),
        ("ss3", {"ss3": np.array([{}, 1, 2], dtype=object)}, "no label can be read"),
        ("ss3", {"ss3": np.array([0, 1, 2]), "valid_mask": np.array(1)}, "'valid_mask' is array"),
        ("ss3", {"ss3": np.array([0, 1, 2]), "valid_mask": "110"}, "'valid_mask' is '110'"),
        ("ss3", {"ss3": np.array([0, 1, 2]), "valid_mask": np.ones(2)}, "has 2 mask entries for 3 residues"),
        ("contact", {"tertiary": np.array(["a"] * 9).reshape(3, 3)}, "several texts"),
        ("contact", {"tertiary": np.zeros((3, 2))}, "the label is not coordinates"),
        ("fluorescence", {"log_fluorescence": np.array([1.0, 2.0])}, "has 2 values, and one is expected"),
    ],
)
def test_lmdb_fields_of_nonsense_are_refused(tmp_path: Path, name: str, fields: dict[str, Any], message: str) -> None:
    path = lmdb_of(tmp_path, f"{TASKS[name].files.lmdb}_test", [{"primary": "MKT", "id": 1, **fields}])
    with pytest.raises(InputError, match=message):
        TASKS[name].read(path)


def test_numbers_for_letters_say_what_is_missing(tmp_path: Path) -> None:
    path = lmdb_of(tmp_path, "own_test", [{"primary": "MKT", "state": np.array([0, 1, 2])}])
    task = replace(own_task("own", "residue_classes"), files=Files(lmdb="own", lmdb_field="state"))
    with pytest.raises(InputError, match="the labels of its residues are numbers") as caught:
        task.read(path)
    assert "lmdb_labels" in caught.value.hint


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("HHE EC", "the label ' ' of residue 4 is a space or a control character"),
        ("HH\tEEC", r"the label '\\t' of residue 3 is a space"),
        ("HH\x07EEC", "of residue 3 is a space or a control character"),
    ],
)
def test_letters_of_residues_are_letters(tmp_path: Path, labels: str, message: str) -> None:
    (tmp_path / "sequences.fasta").write_text(">a\nMKTAYI\n")
    (tmp_path / "labels.fasta").write_text(f">a\n{labels}\n")
    with pytest.raises(InputError, match=message):
        own_task("own", "residue_classes").read(tmp_path)


def test_files_side_by_side_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "sequences.fasta").write_text(">a SET=train\nMKT\n")
    (tmp_path / "labels.fasta").write_text(">a SET=test\nHEC\n")
    with pytest.raises(InputError, match="SET= is not the same in"):
        own_task("own", "residue_classes").read(tmp_path)
    (tmp_path / "labels.fasta").write_text(">a\nHEC\n")
    (tmp_path / "mask.fasta").write_text(">a\n1T0\n")
    with pytest.raises(InputError, match="the mask 'T' of residue 2 is not in the set"):
        own_task("own", "residue_classes").read(tmp_path)
    (tmp_path / "labels.fasta").write_text("HEC\n>a\nHEC\n")
    with pytest.raises(InputError, match=r"labels\.fasta, line 1: not FASTA"):
        own_task("own", "residue_classes").read(tmp_path)


def test_a_table_with_semicolons_and_decimal_commas() -> None:
    data = TASKS["stability"].read(CASES / "semicolon.csv", split="test")
    assert [float(protein.target) for protein in data.proteins][:7] == pytest.approx(
        [3.686, 0.591, 0.662, 2.716, 3.23, 2.496, -0.704]
    )
    assert len(data.proteins) == 12


@pytest.mark.parametrize("start", ["", "\ufeff", "sep=;\n", "\ufeffsep=;\r\n"])
@pytest.mark.parametrize("name", ["x.csv", "x.tsv"])
def test_what_spreadsheets_put_before_and_between(tmp_path: Path, start: str, name: str) -> None:
    text = f'{start}ID;Sequence;"Target";Set\r\n"a; b";MKT;1,5;test\r\n\r\nc;MKV;-2,25e1;test\r\n'
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    data = TASKS["stability"].read(tmp_path / name, split="test")
    assert [(protein.record.id, float(protein.target)) for protein in data.proteins] == [("a; b", 1.5), ("c", -22.5)]


def test_a_comma_is_decimal_only_where_it_must_be(tmp_path: Path) -> None:
    task = own_task("own", "residue_values")
    (tmp_path / "x.csv").write_text("sequence;target\nMK;1,5 2,5\n")
    assert task.read(tmp_path / "x.csv").proteins[0].target.tolist() == [1.5, 2.5]
    (tmp_path / "x.csv").write_text("sequence;target\nMK;1,5\n")
    assert task.read(tmp_path / "x.csv").proteins[0].target.tolist() == [1, 5]
    (tmp_path / "x.csv").write_text("sequence;target\nMK;1.234,5\n")
    with pytest.raises(InputError, match="has 2 values, and one is expected"):
        TASKS["stability"].read(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text('sequence,target\nMK,"3,686"\n')
    with pytest.raises(InputError, match="has 2 values, and one is expected") as caught:
        TASKS["stability"].read(tmp_path / "x.csv")
    assert caught.value.hint == "If 3,686 is one number, write 3.686."
    (tmp_path / "x.csv").write_text("sequence;target\nMKT;1,2\nMKV;3,4\n")
    assert classes(tmp_path / "x.csv").labels == ("1,2", "3,4"), "a class is taken as it stands"


def test_a_table_without_sets_says_what_to_do() -> None:
    task = TASKS["stability"]
    assert len(task.read(CASES / "noset.csv", split="test", unnamed=True).proteins) == 12
    with pytest.raises(InputError, match="no proteins of SET=test") as caught:
        task.read(CASES / "noset.csv", split="test")
    assert "Add a column 'set' to a table" in caught.value.hint
    assert "or ask for no set" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id;name;target\na;b;1\n", r"no column for the sequence \(sequence or seq or primary\)"),
        ("seq;target\nMKT;1;2\n", "line 2: has not as many fields as the header, 2, but 3"),
        ("seq,target\nMKT,1\n\nMKV,2,3\n", "line 4: has not as many fields"),
        ('seq,target\nMKT,"a" b\n', "line 2: cannot be read as a table"),
        ('seq,target\nMKT,1\nMKV,"2\nMKW,3\n', "line 3: cannot be read as a table"),
        ("seq,target\nMKT,a\0b\n", "line 2: the column 'target' holds a NUL byte"),
        ("", "has no column for the sequence"),
        ("sep=;\n", "has no column for the sequence"),
        (f"seq,target\nMKT,{'9' * (2**24 + 1)}\n", "line 2: cannot be read as a table .*field limit"),
    ],
)
def test_tables_of_nonsense_are_one_clear_error(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(InputError, match=rf"x\.csv(:|,) ?.*{message}"):
        TASKS["stability"].read(tmp_path / "x.csv")


def test_fields_longer_than_csv_reads_by_itself(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    sequence = "MKTAYIAKQR" * 3000
    scores = " ".join(["-12.345"] * len(sequence))
    (tmp_path / "x.csv").write_text(f"sequence,target\n{sequence},{scores}\n")
    (protein,) = own_task("own", "residue_values").read(tmp_path / "x.csv").proteins
    assert len(protein.target) == len(sequence)
    assert csv.field_size_limit() == before


def test_labels_in_parquet_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"x\.parquet: labels are not read from Parquet") as caught:
        classes(tmp_path / "x.parquet")
    assert "to_csv" in caught.value.hint


def test_coordinates_of_damaged_files_are_one_clear_error(tmp_path: Path) -> None:
    """Bits flipped, bytes cut off, objects pickled, another file: never another exception."""
    path = tmp_path / "test.npz"
    arrays: dict[str, Any] = {
        "ids": np.array([b"p"]),
        "offsets": np.array([0, 4]),
        "residues": np.frombuffer(b"MKTW", dtype=np.uint8),
        "coords": np.zeros((4, 3), dtype=np.int16),
    }
    np.savez_compressed(path, **arrays)
    whole, rng, said = path.read_bytes(), np.random.default_rng(0), []
    for number in range(300):
        data = bytearray(whole[: rng.integers(len(whole))] if number % 3 == 0 else whole)
        for place in rng.integers(0, max(1, len(data)), 3):
            if data:
                data[place] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(data))
        try:
            TASKS["contact"].read(path)
        except InputError as error:
            said.append(str(error))
    assert len(said) > 150
    assert all("test.npz" in message for message in said)
    for wrong in ({"ids": np.array([{}], dtype=object)}, {"coords": np.array([["a"] * 3] * 4)}, {"ids": np.array(3)}):
        np.savez(path, **{**arrays, **wrong})
        with pytest.raises(InputError, match=r"test\.npz: cannot be read as proteins"):
            TASKS["contact"].read(path)
    np.save(tmp_path / "x.npy", np.zeros(3))
    (tmp_path / "x.npy").rename(path)
    with pytest.raises(InputError, match=r"test\.npz: cannot be read as proteins"):
        TASKS["contact"].read(path)
