"""From hits and alignments to counts beside the tokens: the right sums, and every line that does not fit is named."""

import gzip
import lzma
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from protembed.errors import InputError, TrainingError
from protembed.sequences.alphabet import PROTEMBED, STANDARD_RESIDUES
from protembed.training.corpus import homologs
from protembed.training.corpus.corpus import Corpus, open_corpus, prepare_corpus
from protembed.training.corpus.counts import MOST, decode_counts, encode_counts
from protembed.training.corpus.hits import COLUMNS
from protembed.training.corpus.packing import Cursor, Packing
from tests.conftest import Run, write_fasta
from tests.training.test_corpus import wait_for

Hit = tuple[str, str, int, int, str]  # query, target, qstart, tstart, cigar

LENGTHS = {f"P{number}": 30 + 7 * number for number in range(12)}


def residues(name: str) -> str:
    rng = np.random.default_rng(int(name[1:]))
    return "".join(rng.choice(list(STANDARD_RESIDUES), LENGTHS[name]))


SEQUENCES = {name: residues(name) for name in LENGTHS}
HITS: list[Hit] = [
    ("P1", "P1", 1, 1, "37M"),
    ("P1", "P2", 3, 5, "10M2I8M3D12M"),
    ("P1", "P3", 1, 1, "30M"),
    ("P4", "P1", 10, 1, "20M"),
    ("P4", "P9", 1, 20, "5M1D5M1I40M"),
    ("P7", "P9", 2, 2, "60M"),
]


def pairs(hit: Hit) -> list[tuple[int, int]]:
    """Aligned residues, from 0."""
    _, _, q, t, cigar = hit
    q, t, found = q - 1, t - 1, []
    for count, kind in ((int(n), kind) for n, kind in re.findall("([0-9]+)([MID])", cigar)):
        found += [(q + step, t + step) for step in range(count)] if kind == "M" else []
        q += count * (kind != "D")
        t += count * (kind != "I")
    return found


def line(hit: Hit, sequences: dict[str, str] = SEQUENCES) -> str:
    """A line as MMseqs2 writes it."""
    query, target, q, t, cigar = hit
    runs = [(int(n), kind) for n, kind in re.findall("([0-9]+)([MID])", cigar)]
    qend = q - 1 + sum(n for n, kind in runs if kind != "D")
    tend = t - 1 + sum(n for n, kind in runs if kind != "I")
    same = sum(sequences[query][i] == sequences[target][j] for i, j in pairs(hit))
    identity = same / sum(n for n, _ in runs)
    return "\t".join(map(str, (query, target, f"{identity:.3f}", q, qend, t, tend, "1.0E-10", cigar)))


def expected(hits: list[Hit]) -> dict[str, npt.NDArray[np.float64]]:
    """Counts by the plainest way there is."""
    counts = {name: np.zeros((len(sequence), 20)) for name, sequence in SEQUENCES.items()}
    for hit in hits:
        query, target = hit[:2]
        identity = float(line(hit).split("\t")[2])
        for i, j in pairs(hit) if query != target else []:
            counts[query][i, STANDARD_RESIDUES.index(SEQUENCES[target][j])] += max(0.05, 1 - identity)
    return counts


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    """Two files: queries and targets are of both."""
    halves = [dict(list(SEQUENCES.items())[part::2]) for part in (0, 1)]
    return [str(write_fasta(tmp_path / f"{part}.fasta", half)) for part, half in enumerate(halves)]


def write_hits(path: Path, hits: list[Hit] = HITS) -> str:
    path.write_text("".join(f"{line(hit)}\n" for hit in hits))
    return str(path)


def counts_of(corpus: Corpus) -> dict[str, npt.NDArray[np.float32]]:
    names = {sequence: name for name, sequence in SEQUENCES.items()}
    return {
        names[PROTEMBED.decode(store[index])]: store.counts(index)
        for store in (corpus.train, corpus.valid)
        for index in range(len(store))
    }


def check(corpus: Corpus, hits: list[Hit]) -> None:
    found = counts_of(corpus)
    for name, counts in expected(hits).items():
        np.testing.assert_allclose(found[name], counts, rtol=0.03, atol=0.001, err_msg=name)


class TestHits:
    def test_counts_are_the_sums_over_the_aligned_residues(self, sources: list[str], tmp_path: Path) -> None:
        corpus = prepare_corpus(sources, tmp_path / "corpus", PROTEMBED, homologs=[write_hits(tmp_path / "h.tsv")])
        check(corpus, HITS)
        totals = corpus.statistics.homologs
        assert totals is not None
        assert (totals.lines, totals.used, totals.own, totals.held_out, totals.proteins) == (6, 5, 1, 0, 3)

    def test_small_pieces_give_the_same(
        self, sources: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(homologs, "_PAIRS", 40)
        monkeypatch.setattr(homologs, "_RESIDUES", 50)
        monkeypatch.setattr("protembed.training.corpus.hits._LINES", 2)
        check(prepare_corpus(sources, tmp_path / "c", PROTEMBED, homologs=[write_hits(tmp_path / "h.tsv")]), HITS)

    def test_the_order_of_lines_and_the_packing_do_not_matter(self, sources: list[str], tmp_path: Path) -> None:
        mixed = [HITS[place] for place in (5, 1, 3, 0, 4, 2)]
        text = "".join(f"{line(hit)}\r\n" for hit in mixed).encode()
        for name, data in (("h.gz", gzip.compress(text)), ("h.xz", lzma.compress(text))):
            (tmp_path / name).write_bytes(data)
            corpus = prepare_corpus(sources, tmp_path / f"corpus {name}", PROTEMBED, homologs=[str(tmp_path / name)])
            check(corpus, HITS)

    def test_a_header_names_the_columns(self, sources: list[str], tmp_path: Path) -> None:
        order = [0, 8, 1, 2, 7, 3, 4, 5, 6]
        rows = [COLUMNS, *(line(hit).split("\t") for hit in HITS)]
        text = "\n".join("\t".join([*(row[place] for place in order), "bits"]) for row in rows)
        (tmp_path / "h.tsv").write_text(text)
        check(prepare_corpus(sources, tmp_path / "c", PROTEMBED, homologs=[str(tmp_path / "h.tsv")]), HITS)

    def test_several_files_add_up(self, sources: list[str], tmp_path: Path) -> None:
        names = [write_hits(tmp_path / "1.tsv", HITS[:4]), write_hits(tmp_path / "2.tsv", HITS[2:])]
        check(prepare_corpus(sources, tmp_path / "c", PROTEMBED, homologs=names), HITS[:4] + HITS[2:])

    def test_a_copy_has_the_homologs_of_the_protein_that_is_kept(self, sources: list[str], tmp_path: Path) -> None:
        copy = write_fasta(tmp_path / "copy.fasta", {"copy": SEQUENCES["P1"]})
        hits = [line(hit).replace("P1\t", "copy\t", 1) if hit[0] == "P1" else line(hit) for hit in HITS]
        (tmp_path / "h.tsv").write_text("\n".join(hits))
        corpus = prepare_corpus([*sources, str(copy)], tmp_path / "c", PROTEMBED, homologs=[str(tmp_path / "h.tsv")])
        check(corpus, HITS)
        assert corpus.statistics.homologs is not None
        assert corpus.statistics.homologs.own == 1

    def test_a_near_copy_counts_a_twentieth(self, tmp_path: Path) -> None:
        sequence = SEQUENCES["P1"]
        source = write_fasta(tmp_path / "a.fasta", {"q": sequence, "near": f"W{sequence[1:]}", "far": "W" * 37})
        hits = tmp_path / "h.tsv"
        identity = [
            f"{sum(a == b for a, b in zip(sequence, t, strict=True)) / 37:.3f}" for t in (f"W{sequence[1:]}", "W" * 37)
        ]
        names = zip(("near", "far"), identity, strict=True)
        hits.write_text("".join(f"q\t{name}\t{share}\t1\t37\t1\t37\t0\t37M\n" for name, share in names))
        corpus = prepare_corpus([str(source)], tmp_path / "c", PROTEMBED, homologs=[str(hits)])
        counts = corpus.train.counts(0)
        column = STANDARD_RESIDUES.index("W")
        far = 1 - float(identity[1])
        assert counts[0, column] == pytest.approx(0.05 + far, rel=0.03)
        own = STANDARD_RESIDUES.index(sequence[1])
        assert counts[1, own] == pytest.approx(0.05, rel=0.03)

    def test_letters_that_are_no_standard_residue_are_not_counted(self, tmp_path: Path) -> None:
        """Whether B and D are identical is up to the program that searched."""
        proteins = {"q": "MKTAYIAKDR", "t": "MKXAYIAUBR"}
        source = write_fasta(tmp_path / "a.fasta", proteins)
        for number, identity in enumerate(("0.700", "0.800")):
            hits = tmp_path / f"{number}.tsv"
            hits.write_text(f"q\tt\t{identity}\t1\t10\t1\t10\t1E-5\t10M\n")
            corpus = prepare_corpus([str(source)], tmp_path / f"c{number}", PROTEMBED, homologs=[str(hits)])
            assert corpus.train.counts(0).any(axis=1).tolist() == [letter not in "XUB" for letter in proteins["t"]]

    @pytest.mark.parametrize("cut", [0, 1])
    def test_no_lines_and_no_homologs(self, sources: list[str], tmp_path: Path, cut: int) -> None:
        hits = write_hits(tmp_path / "h.tsv", HITS[:1])
        if not cut:
            Path(hits).write_text(f"{chr(9).join(COLUMNS)}\n")
        check(prepare_corpus(sources, tmp_path / "c", PROTEMBED, homologs=[hits]), [])


class TestValidation:
    def test_proteins_of_validation_files_are_nobodys_homologs(self, sources: list[str], tmp_path: Path) -> None:
        """They have homologs themselves: the model is evaluated on them."""
        names = [name for name in SEQUENCES if name in ("P2", "P4", "P9")]
        train = write_fasta(tmp_path / "t.fasta", {k: v for k, v in SEQUENCES.items() if k not in names})
        valid = write_fasta(tmp_path / "v.fasta", {k: SEQUENCES[k] for k in names})
        hits = write_hits(tmp_path / "h.tsv")
        corpus = prepare_corpus([str(train)], tmp_path / "c", PROTEMBED, valid=[str(valid)], homologs=[hits])
        check(corpus, [hit for hit in HITS if hit[1] not in names])
        assert corpus.statistics.homologs is not None
        assert corpus.statistics.homologs.held_out == 3

    def test_nor_are_their_clusters_and_copies(self, tmp_path: Path) -> None:
        train = {**SEQUENCES, "P3 cluster=v": SEQUENCES["P3"]}
        del train["P3"]
        first = write_fasta(tmp_path / "t.fasta", train)
        valid = write_fasta(tmp_path / "v.fasta", {"V1": SEQUENCES["P2"], "V2 cluster=v": "MKTAYIAKQR"})
        hits = write_hits(tmp_path / "h.tsv")
        corpus = prepare_corpus([str(first)], tmp_path / "c", PROTEMBED, valid=[str(valid)], homologs=[hits])
        names = {sequence: name for name, sequence in SEQUENCES.items()}
        found = {names[PROTEMBED.decode(corpus.train[i])]: corpus.train.counts(i) for i in range(len(corpus.train))}
        right = expected([hit for hit in HITS if hit[1] not in ("P2", "P3")])
        for name in ("P1", "P4", "P7"):
            np.testing.assert_allclose(found[name], right[name], rtol=0.03, atol=0.001)

    def test_clusters_that_are_drawn_are_held_out(self, sources: list[str], tmp_path: Path) -> None:
        hits = write_hits(tmp_path / "h.tsv")
        corpus = prepare_corpus(sources, tmp_path / "c", PROTEMBED, valid_share=0.4, seed=2, homologs=[hits])
        names = {sequence: name for name, sequence in SEQUENCES.items()}
        held_out = {names[PROTEMBED.decode(corpus.valid[index])] for index in range(len(corpus.valid))}
        assert {hit[1] for hit in HITS} & held_out
        check(corpus, [hit for hit in HITS if hit[1] not in held_out])


GOOD = line(HITS[1]).split("\t")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, "absent", "query: no protein has that id"),
        (1, "absent", "target: no protein has that id"),
        (1, "twice", "target: several proteins have that id"),
        (2, "high", "a column that should hold a number does not"),
        (2, "27.3", "fident is 27.3, not between 0 and 1"),
        (2, "nan", "fident is nan"),
        (2, "0.9", "fident is 0.900, and of the aligned residues 0.0[0-9]+ are identical"),
        (3, "0", "the positions make no sense"),
        (3, "4", "the CIGAR and the positions contradict each other"),
        (4, "9" * 5000, "a column that should hold a number does not"),
        (4, "9" * 30, "the positions make no sense"),
        (6, "36", "the CIGAR and the positions contradict each other"),
        (8, "10M2N8M3D12M", "is no CIGAR"),
        (8, "", "is no CIGAR"),
        (8, f"{'9' * 30}M", "the CIGAR and the positions contradict each other"),
        (8, "12M3I10M3D12M\tmore", "10 columns, not 9"),
    ],
)
def test_a_line_that_does_not_fit_is_named(
    sources: list[str], tmp_path: Path, column: int, value: str, message: str
) -> None:
    twice = [write_fasta(tmp_path / f"twice{n}.fasta", {"twice": "MKTAYIAKQR" * (n + 4)}) for n in (1, 2)]
    words = [*GOOD]
    words[column] = value
    hits = tmp_path / "hits.tsv"
    hits.write_text("\n".join([line(HITS[0]), "\t".join(words), line(HITS[2])]))
    with pytest.raises(InputError, match=f"hits.tsv, line 2: .*{message}") as error:
        prepare_corpus([*sources, *map(str, twice)], tmp_path / "corpus", PROTEMBED, homologs=[str(hits)])
    assert error.value.hint
    with pytest.raises(TrainingError, match="was not finished"):
        open_corpus(tmp_path / "corpus", PROTEMBED)


def test_an_alignment_past_the_end_of_a_protein_is_named(sources: list[str], tmp_path: Path) -> None:
    (tmp_path / "h.tsv").write_text("P1\tP2\t0.0\t1\t38\t1\t38\t1E-5\t38M\n")
    with pytest.raises(InputError, match="line 1: query ends at residue 38, and the protein has 37"):
        prepare_corpus(sources, tmp_path / "corpus", PROTEMBED, homologs=[str(tmp_path / "h.tsv")])


A3M = """#37\t1
>101
{query}
>UniRef100_A\t57\t0.5
{first}
>P2
{second}
>held
{third}
"""


class TestAlignments:
    def write(self, path: Path) -> Path:
        """P1 beside a row with a gap and an insertion, P2 by name, and a protein that is held out."""
        query = SEQUENCES["P1"]
        path.write_text(
            A3M.format(query=query, first=f"--W{query[3:20]}acdW{query[21:]}", second="C" * 37, third="D" * 37)
        )
        return path

    def check(self, corpus: Corpus) -> None:
        (found,) = [corpus.train.counts(i) for i in range(len(corpus.train)) if len(corpus.train[i]) == 37]
        near = max(0.05, 1 - sum(a == b for a, b in zip(SEQUENCES["P1"][2:], self.row(), strict=True)) / 35)
        wanted = np.zeros((37, 20))
        for place, letter in enumerate(self.row(), start=2):
            wanted[place, STANDARD_RESIDUES.index(letter)] += near
        far = 1 - SEQUENCES["P1"].count("C") / 37
        wanted[:, STANDARD_RESIDUES.index("C")] += far
        np.testing.assert_allclose(found, wanted, rtol=0.03, atol=0.001)

    def row(self) -> str:
        query = SEQUENCES["P1"]
        return f"W{query[3:20]}W{query[21:]}"

    @pytest.fixture
    def valid(self, tmp_path: Path) -> str:
        return str(write_fasta(tmp_path / "v.fasta", {"held": "MKTAYIAKQR"}))

    def test_a_file(self, sources: list[str], tmp_path: Path, valid: str) -> None:
        """The query is known by its residues: ColabFold calls it 101."""
        path = self.write(tmp_path / "x.a3m")
        corpus = prepare_corpus(sources, tmp_path / "c", PROTEMBED, valid=[valid], homologs=[str(path)])
        self.check(corpus)
        totals = corpus.statistics.homologs
        assert totals is not None
        assert (totals.lines, totals.used, totals.held_out) == (3, 2, 1)

    def test_a_folder(self, sources: list[str], tmp_path: Path, valid: str) -> None:
        folder = tmp_path / "msas"
        folder.mkdir()
        text = self.write(folder / "0.a3m").read_bytes()
        (folder / "1.a3m.gz").write_bytes(gzip.compress(text))  # a second one of the protein: counted, not used
        (folder / "notes.txt").write_text("no alignment")
        other = f">q\n{SEQUENCES['P5']}\n>h\n{SEQUENCES['P5'].replace('A', 'G')}\n"
        (folder / "2.a3m").write_text(f"#x\n{other}\0#y\n>r\n{SEQUENCES['P6']}\n>own\n{SEQUENCES['P6']}\n\0")
        corpus = prepare_corpus(sources, tmp_path / "c", PROTEMBED, valid=[valid], homologs=[str(folder)])
        self.check(corpus)
        totals = corpus.statistics.homologs
        assert totals is not None
        assert (totals.lines, totals.used, totals.own, totals.held_out, totals.repeated) == (8, 3, 1, 1, 3)
        assert totals.proteins == 2

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            (">101\n", ">101\nM", "line 2: no protein of the corpus has the residues of the query"),
            (">101\n", ">101\n-", "line 2: the query, '101', is not of upper-case residues alone"),
            ("C" * 37, "C" * 36, "line 6: 'P2' has 36 columns, and its query has 37 residues"),
            ("#37\t1", "MK", "line 1: not a3m"),
        ],
    )
    def test_what_does_not_fit_is_named(
        self, sources: list[str], tmp_path: Path, valid: str, old: str, new: str, message: str
    ) -> None:
        path = self.write(tmp_path / "x.a3m")
        path.write_text(path.read_text().replace(old, new, 1))
        with pytest.raises(InputError, match=f"x.a3m, {message}"):
            prepare_corpus(sources, tmp_path / "c", PROTEMBED, valid=[valid], homologs=[str(path)])

    def test_a_folder_without_alignments(self, sources: list[str], tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match="no a3m file"):
            prepare_corpus(sources, tmp_path / "c", PROTEMBED, homologs=[str(tmp_path / "empty")])


class TestBytes:
    def test_rounding(self) -> None:
        counts = np.concatenate([np.zeros(3), np.geomspace(0.05, MOST, 197)]).reshape(-1, 20)
        found = decode_counts(encode_counts(counts))
        np.testing.assert_allclose(found, counts, rtol=0.03)
        assert (found[counts == 0] == 0).all()

    def test_deep_rows_keep_their_proportions(self) -> None:
        counts = np.zeros((2, 20))
        counts[0, :3], counts[1, :3] = (4000, 2000, 40), (4, 2, 0.04)
        found = decode_counts(encode_counts(counts))
        assert found[0, 0] == pytest.approx(MOST, rel=1e-6)
        np.testing.assert_allclose(found / found[:, :1], counts / counts[:, :1], rtol=0.05, atol=0.01)


SLOW = """
import time
from pathlib import Path
from protembed.sequences.alphabet import PROTEMBED
from protembed.training.corpus import homologs
from protembed.training.corpus.corpus import prepare_corpus
run = homologs._Fold.run

def slow(self):
    for number, item in enumerate(run(self)):
        if self._reader._path.name == "2.tsv" and number == 1:
            time.sleep(600)
        yield item

homologs._Fold.run = slow
prepare_corpus({sources}, Path({folder!r}), PROTEMBED, homologs={homologs})
"""


class TestAgain:
    def test_a_killed_one_goes_on(self, sources: list[str], tmp_path: Path) -> None:
        """kill -9 while the second file is added up: proteins and the first file are not made again."""
        names = [write_hits(tmp_path / "1.tsv", HITS[:4]), write_hits(tmp_path / "2.tsv", HITS[2:])]
        prepare_corpus(sources, tmp_path / "undisturbed", PROTEMBED, homologs=names)
        script = tmp_path / "script.py"
        folder = tmp_path / "corpus"
        script.write_text(SLOW.format(sources=sources, folder=str(folder), homologs=names))
        with subprocess.Popen([sys.executable, script]) as process:
            wait_for(lambda: list(folder.glob("homologs/.2.tsv*/hits.tmp")))
            wait_for(lambda: list(folder.glob("homologs/1.tsv*.homologs")))
            process.send_signal(signal.SIGKILL)
        made = {path: path.stat().st_mtime_ns for path in folder.rglob("*.bin") if ".tmp" not in str(path)}
        corpus = prepare_corpus(sources, folder, PROTEMBED, homologs=names)
        assert all(path.stat().st_mtime_ns == before for path, before in made.items())
        check(corpus, HITS[:4] + HITS[2:])
        files = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in self.both(tmp_path)]
        assert files[0] == files[1]

    def both(self, tmp_path: Path) -> list[Path]:
        return [tmp_path / "corpus", tmp_path / "undisturbed"]

    def test_homologs_are_added_without_reading_the_proteins_again(self, sources: list[str], tmp_path: Path) -> None:
        corpus = prepare_corpus(sources, tmp_path / "c", PROTEMBED)
        assert not corpus.train.homologs
        made = {path: path.stat().st_mtime_ns for path in (tmp_path / "c" / "parts").rglob("*")}
        hits = write_hits(tmp_path / "h.tsv")
        with pytest.raises(TrainingError, match=r"holds another corpus \(homologs differ\)"):
            prepare_corpus(sources, tmp_path / "c", PROTEMBED, homologs=[hits])
        check(prepare_corpus(sources, tmp_path / "c", PROTEMBED, homologs=[hits], overwrite=True), HITS)
        assert all(path.stat().st_mtime_ns == before for path, before in made.items())
        prepare_corpus(sources, tmp_path / "c", PROTEMBED, overwrite=True)
        assert not list((tmp_path / "c" / "homologs").iterdir())

    def test_other_proteins_or_another_split_make_other_counts(self, sources: list[str], tmp_path: Path) -> None:
        hits = write_hits(tmp_path / "h.tsv")
        prepare_corpus(sources, tmp_path / "c", PROTEMBED, homologs=[hits])
        corpus = prepare_corpus(
            sources, tmp_path / "c", PROTEMBED, homologs=[hits], valid_share=0.4, seed=2, overwrite=True
        )
        assert corpus.statistics.homologs is not None
        assert corpus.statistics.homologs.held_out

    def test_what_is_not_there_or_given_twice(self, sources: list[str], tmp_path: Path) -> None:
        with pytest.raises(TrainingError, match=r"h\.tsv: no such file"):
            prepare_corpus(sources, tmp_path / "c", PROTEMBED, homologs=[str(tmp_path / "h.tsv")])
        hits = write_hits(tmp_path / "h.tsv")
        with pytest.raises(TrainingError, match="given twice"):
            prepare_corpus(sources, tmp_path / "c", PROTEMBED, homologs=[hits, hits])

    def test_a_flipped_bit_is_noticed(self, sources: list[str], tmp_path: Path) -> None:
        prepare_corpus(sources, tmp_path / "c", PROTEMBED, homologs=[write_hits(tmp_path / "h.tsv")])
        for name in ("counts", "begins", "rows"):
            (path,) = (tmp_path / "c").glob(f"homologs/*/{name}.bin")
            flipped = bytearray(path.read_bytes())
            flipped[len(flipped) // 2] ^= 4
            whole = path.read_bytes()
            path.write_bytes(flipped)
            with pytest.raises(TrainingError, match=f"{name}.bin: is not what was written"):
                counts_of(open_corpus(tmp_path / "c", PROTEMBED))
            path.write_bytes(whole)
        os.unlink(path)
        with pytest.raises(TrainingError, match="is missing or was cut short"):
            open_corpus(tmp_path / "c", PROTEMBED)


def test_windows_of_counts_are_those_of_the_residues(sources: list[str], tmp_path: Path) -> None:
    corpus = prepare_corpus(sources, tmp_path / "c", PROTEMBED, homologs=[write_hits(tmp_path / "h.tsv")])
    plan = Packing(store=corpus.train, alphabet=PROTEMBED, batch_tokens=60, max_residues=20, seed=0)
    windows = 0
    for micro, _ in zip(plan.plan(Cursor()), range(40), strict=False):
        for index, tokens, counts in zip(
            micro.indices.tolist(), plan.read(micro), plan.read_counts(micro), strict=True
        ):
            assert counts.shape == (len(tokens), 20)
            assert not counts[[0, -1]].any()
            whole, inner = corpus.train[index].tobytes(), tokens[1:-1].astype(np.uint8).tobytes()
            start = whole.index(inner)
            assert (counts[1:-1] == corpus.train.counts(index)[start : start + 20]).all()
            windows += start > 0
    assert windows


def test_prepare_command(run: Run, sources: list[str], tmp_path: Path) -> None:
    hits = write_hits(tmp_path / "h.tsv")
    result = run("prepare", *sources, "-o", "corpus", "--valid-share", "0", "--homologs", hits)
    assert result.returncode == 0, result.stderr
    rows = {row.split("\t")[0]: row.split("\t")[1:] for row in result.stdout.splitlines()}
    assert (rows["with homologs"][0], rows["homologs"][0]) == ("3", "5")
    Path(hits).write_text(line(HITS[1]).replace("P2", "P99"))
    wrong = run("prepare", *sources, "-o", "other", "--homologs", hits)
    assert wrong.returncode == 2
    assert "h.tsv, line 1: target: no protein has that id" in wrong.stderr
    assert "Traceback" not in wrong.stderr
