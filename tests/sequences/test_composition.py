"""DNA, RNA and the like are told from proteins, and proteins are not taken for them."""

import lzma
import random
import warnings
from pathlib import Path

import pytest

from protembed.errors import InputError
from protembed.sequences.alphabet import PROTEMBED
from protembed.sequences.composition import ExpectPolicy, other_than_protein
from protembed.sequences.records import Record, clean
from protembed.sequences.survey import Survey, survey
from tests.conftest import SEQUENCES

CORPUS = Path(__file__).parents[3] / "shared" / "data" / "corpus" / "valid.fasta.xz"
DNA = "ATGAAAACCGCGTATATTGCGAAACAGCGTCAGATTAGCTTTGTGAAAAGC"


@pytest.mark.parametrize(
    ("letters", "what"),
    [
        (DNA, "DNA"),
        (DNA.replace("T", "U"), "RNA"),
        ("ATGAAAACNNNGTATATTGCGAAACAGCGT", "DNA"),
        ("ATGAARACYGCGTATATTGCGAAACAGCGTCAGATTAGCTTT", "DNA"),
        ("ACGTACGTACGT", "DNA"),
        ("GGGGGGGGCCCCCCCCTTTTTTTT", "DNA"),
        ("METLYSTHRALATYRILE", "three-letter codes"),
        ("METLYSTHR", "three-letter codes"),
        ("CCCCHHHHHHHHHHCCCCEEEEEECCC", "secondary structure"),
    ],
)
def test_what_is_no_protein(letters: str, what: str) -> None:
    assert other_than_protein(letters) == what


@pytest.mark.parametrize(
    "protein",
    [
        *SEQUENCES.values(),
        "A" * 200,
        "AATAATAATAATAATAATAATAATAATAATA",
        "GAGAGSGAGAGSGAGAGSGAGAGS",
        "GAGAGAGAGAGAGAGAGAGAGAGA",
        "NNNNNNNNNNTNNNNNNNNGNNNNNNNANNNN",
        "GATTACA",
        "MET",
        "ALAALA",
        "",
        "X" * 50,
        "HHHHHHHHHHHHHHHHHHHHHHHHH",
        "EEEEEEEEEECCCCCCCCCCCCCCC",
    ],
)
def test_proteins_of_few_kinds_of_residues_are_proteins(protein: str) -> None:
    assert other_than_protein(protein) is None


@pytest.mark.skipif(not CORPUS.is_file(), reason="no ../shared/data/corpus")
def test_no_false_alarm_on_real_proteins() -> None:
    with lzma.open(CORPUS, "rt") as file:
        proteins = [line.strip() for line in file if not line.startswith(">")]
    draw = random.Random(0)
    peptides = []
    for protein in proteins:
        start = draw.randrange(max(1, len(protein) - 25))
        peptides.append(protein[start : start + 25])
    assert [letters for letters in proteins + peptides if other_than_protein(letters)] == []
    assert len(proteins) >= 1000


def look(records: list[Record], expect: ExpectPolicy) -> Survey:
    return survey(
        lambda: [clean(record) for record in records], alphabet=PROTEMBED, unknown="x", key="id", expect=expect
    )


RECORDS = [
    Record("p", "MKTAYIAKQR"),
    Record("gene", DNA, place="x.fasta, line 3"),
    Record("codes", "MetLysThrAlaTyrIle"),
    Record("gene2", DNA[::-1].lower()),
]


def test_a_warning_names_the_first_and_the_summary_counts_all() -> None:
    with pytest.warns(UserWarning, match=r"x\.fasta, line 3: record 'gene' looks like DNA.*, and 2 more") as caught:
        found = look(RECORDS, "warn")
    assert len(caught) == 1
    notes = found.notes("X")
    assert notes["records that look like DNA"] == 2
    assert notes["records that look like three-letter codes"] == 1


@pytest.mark.parametrize("expect", ["protein", "error"])
def test_they_can_be_refused_by_name(expect: ExpectPolicy) -> None:
    with pytest.raises(InputError, match=r"x\.fasta, line 3: record 'gene' looks like DNA"):
        look(RECORDS, expect)


def test_proteins_alone_give_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert look(RECORDS[:1], "protein").others == {}


def test_stops_inside_are_unknown_letters() -> None:
    found = look([Record("a", "MK*TA**L*"), Record("b", "MKJ"), Record("c", "MKTA*")], "warn")
    assert (found.unknown, found.stops) == (4, 3)
    assert found.notes("X")["letters outside the alphabet, read as X"] == 4


@pytest.mark.parametrize("sequence", ["MK*TA", "MKTA**", "*MKTA"])
def test_stops_inside_are_refused_where_unknown_letters_are(sequence: str) -> None:
    def read() -> list[Record]:
        return [clean(Record("a", sequence))]

    with pytest.raises(InputError, match=r"record 'a' has a stop \(\*\) inside"):
        survey(read, alphabet=PROTEMBED, unknown="error", key="id")
    assert survey(lambda: [clean(Record("a", "MKTA*"))], alphabet=PROTEMBED, unknown="error", key="id").unknown == 0
