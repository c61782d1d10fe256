"""What Python users hand over as proteins: taken as they mean it, or refused with a sentence."""

import io
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from Bio import SeqIO
from Bio.Seq import MutableSeq, Seq
from Bio.SeqRecord import SeqRecord

from protembed.errors import InputError
from protembed.sequences.records import Record
from protembed.sequences.sources import read_source

FASTA = ">a first\nMKT\n>b\nMV\n"


def seen(source: Any) -> list[tuple[str, str]]:
    return [(record.id, record.sequence) for record in read_source(source)]


NAMED = [("a", "MKT"), ("b", "MV")]
NUMBERED = [("1", "MKT"), ("2", "MV")]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (["MKT", "MV"], NUMBERED),
        (("MKT", "MV"), NUMBERED),
        ((sequence for sequence in ("MKT", "MV")), NUMBERED),
        (np.array(["MKT", "MV"]), NUMBERED),
        (np.array([b"MKT", b"MV"]), NUMBERED),
        ([b"MKT", "mv*"], NUMBERED),
        ([Seq("MKT"), MutableSeq("MV")], NUMBERED),
        ([SeqRecord(Seq("MKT")), SeqRecord(Seq("MV"))], NUMBERED),
        ({"a": "MKT", "b": "MV"}, NAMED),
        (OrderedDict(a=Seq("MKT"), b=b"MV"), NAMED),
        ({"a": SeqRecord(Seq("MKT"), id="x"), "b": Record("y", "MV")}, NAMED),
        ({"a": "MKT", "b": "MV"}.items(), NAMED),
        ([("a", "MKT"), ["b", "MV"]], NAMED),
        (zip("ab", [Seq("MKT"), "MV"], strict=True), NAMED),
        ([Record("a", "MKT"), Record("b", "MV")], NAMED),
        ([SeqRecord(Seq("MKT"), id="a"), ("b", "MV")], NAMED),
        (map(Record, "ab", ("MKT", "MV")), NAMED),
        ({7: "MKT", 8.5: "MV"}, [("7", "MKT"), ("8.5", "MV")]),
        ([(np.int64(7), "MKT"), (np.str_("b"), "MV")], [("7", "MKT"), ("b", "MV")]),
        (Record("a", "MKT"), NAMED[:1]),
        (SeqRecord(Seq("MKT"), id="a"), NAMED[:1]),
        (Seq("MKT"), NUMBERED[:1]),
        ([], []),
        ({}, []),
    ],
)
def test_sources_are_what_they_look_like(source: Any, expected: list[tuple[str, str]]) -> None:
    assert seen(source) == expected


def test_headers_of_biopython_are_kept() -> None:
    (record,) = read_source(SeqIO.parse(io.StringIO(">a first one\nMKT\n"), "fasta"))  # type: ignore[no-untyped-call]
    assert (record.id, record.description) == ("a", "a first one")


def test_biopythons_indexes(tmp_path: Path) -> None:
    (tmp_path / "a.fasta").write_text(FASTA)
    assert seen(SeqIO.index(str(tmp_path / "a.fasta"), "fasta")) == NAMED  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("form", [str, Path])
def test_paths(tmp_path: Path, form: Callable[[Path], Any]) -> None:
    path = tmp_path / "a.fasta"
    path.write_text(FASTA)
    assert seen(form(path)) == NAMED
    with pytest.raises(InputError, match="cannot be read"):
        seen(form(tmp_path / "gone.fasta"))


def test_a_file_without_an_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("proteins").write_text(FASTA)
    assert seen("proteins") == NAMED


class Series:
    """As a pandas Series: values under an index."""

    def __init__(self, values: list[object], index: list[object]) -> None:
        self._items = list(zip(index, values, strict=True))

    def items(self) -> list[tuple[object, object]]:
        return self._items

    def __iter__(self) -> Any:
        return iter(value for _, value in self._items)


class DataFrame:
    """As a pandas DataFrame: iterating gives the names of columns."""

    def __iter__(self) -> Any:
        return iter(["sequence"])


def test_the_index_of_a_series_are_its_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(Series=Series, DataFrame=DataFrame))
    assert seen(Series(["MKT", "MV"], ["a", "b"])) == NAMED
    with pytest.raises(InputError, match=r"item 2 \('b'\) is of the type float"):
        seen(Series(["MKT", float("nan")], ["a", "b"]))
    with pytest.raises(InputError, match="a DataFrame has several columns"):
        read_source(DataFrame())


def test_pandas_itself() -> None:
    pandas = pytest.importorskip("pandas")
    assert seen(pandas.Series(["MKT", "MV"], index=["a", "b"])) == NAMED
    assert seen(pandas.Series(["MKT", "MV"])) == [("0", "MKT"), ("1", "MV")]
    assert seen(pandas.DataFrame({"id": ["a", "b"], "sequence": ["MKT", "MV"]}).set_index("id")["sequence"]) == NAMED
    with pytest.raises(InputError, match="a DataFrame has several columns"):
        read_source(pandas.DataFrame({"sequence": ["MKT"]}))
    with pytest.raises(InputError, match="item 2"):
        seen(pandas.Series(["MKT", None]))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("MKTAYIAKQR", "is no file"),
        ("MKTAYIAKQR*", "is no file"),
        ("MKTAYIAKQR" * 1000, "is no file"),
        (FASTA, "this one holds FASTA"),
        (b"MKTAYIAKQR", "bytes are neither"),
        ({"MKT", "MV"}, "a set has no order"),
        (frozenset({"MKT", "MV"}), "a set has no order"),
        (io.StringIO(FASTA), "an open file"),
        (None, "NoneType is no source"),
        (7, "int is no source"),
        (np.array("MKT"), "ndarray is no source"),
        (object(), "object is no source"),
    ],
)
def test_what_is_no_source_is_refused_at_once(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_source(source)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (["MKT", 7], "item 2 is of the type int"),
        (["MKT", None], "item 2 is of the type NoneType"),
        ([["M", "K", "T"]], "item 1 is of the type list"),
        ([("a", "MKT", 1)], "item 1 is of the type tuple"),
        ([("MKT", 3.5)], "item 1 .* is of the type float"),
        ({"a": ["MKT"]}, r"item 1 \('a'\) is of the type list"),
        ({("a", 1): "MKT"}, r"item 1 has the id \('a', 1\)"),
        ({float("nan"): "MKT"}, "item 1 has the id nan"),
        ([{"id": "a", "sequence": "MKT"}], "item 1 is of the type dict"),
        ([b"MK\xe9"], "item 1: 'ascii' codec"),
        ([Seq(None, length=5)], "item 1: "),
        ([Record("a", 7)], "Record whose id or sequence is no string"),  # type: ignore[arg-type]
        ([Record(7, "MKT")], "Record whose id or sequence is no string"),  # type: ignore[arg-type]
        (["MKT", "MK1"], "record '2' has '1' at residue 3"),
        (["MK\u017f"], "at residue 3"),
        ({"a": ""}, "record 'a' has no residues"),
        ({"a\0": "MK"}, "control character"),
    ],
)
def test_a_bad_item_is_named(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        seen(source)


def test_what_is_no_protein_is_warned_of_once() -> None:
    dna = "ATGAAAACCGCGTATATTGCGAAACAG"
    with pytest.warns(UserWarning, match="record 'gene' looks like DNA") as caught:
        assert len(seen({"a": "MKT", "gene": dna, "b": dna})) == 3
    assert len(caught) == 1
