"""From files of proteins to a corpus: nothing lost, nothing twice, the same result however it came about."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from protembed.errors import InputError, OutputError, TrainingError, UsageError
from protembed.outputs.files import lock
from protembed.sequences.alphabet import PROTEMBED
from protembed.training.corpus import parts
from protembed.training.corpus.corpus import Corpus, CorpusJob, open_corpus, prepare_corpus
from protembed.training.corpus.packing import TokenStore
from tests.conftest import SEQUENCES, Run, write_fasta


def sequence(number: int) -> str:
    return "".join(np.random.default_rng(number).choice(list("ACDEFGHIKLMNPQRSTVWY"), 20 + number % 50))


def clustered(first: int, count: int) -> dict[str, str]:
    """Proteins of 20 clusters, which go across files."""
    return {f"P{number} cluster=C{number % 20}": sequence(number) for number in range(first, first + count)}


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    """Three files; the second is gzip, the third repeats two proteins of the others and one of its own."""
    first = write_fasta(tmp_path / "1.fasta", clustered(0, 50))
    second = tmp_path / "2.fasta.gz"
    second.write_bytes(gzip.compress(write_fasta(tmp_path / "2", clustered(50, 30)).read_bytes(), mtime=0))
    copies = {"copy1 cluster=C1": sequence(1), "copy60": sequence(60).lower(), "copy80": sequence(80)}
    third = write_fasta(tmp_path / "3.fasta", {**clustered(80, 20), **copies})
    return [str(first), str(second), str(third)]


def proteins(store: TokenStore) -> list[str]:
    return [PROTEMBED.decode(store[index]) for index in range(len(store))]


def cluster_sets(store: TokenStore) -> list[set[int]]:
    """Return the clusters' proteins, by the numbers of `sequence`."""
    numbers = {sequence(number): number for number in range(200)}
    found = [numbers[protein] for protein in proteins(store)]
    borders = store.clusters.tolist()
    return [set(found[begin:end]) for begin, end in pairwise(borders)]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_sums(corpus: Corpus) -> None:
    counts = corpus.statistics
    assert counts.proteins == len(corpus.train) + len(corpus.valid) + counts.short + counts.copies
    for split, store in ((counts.train, corpus.train), (counts.valid, corpus.valid)):
        assert (split.proteins, split.residues) == (len(store), store.residues)
        assert sum(split.lengths.values()) == split.proteins
        assert split.clusters == len(store.clusters) - 1


class TestContents:
    def test_every_protein_is_there_once(self, sources: list[str], tmp_path: Path) -> None:
        corpus = prepare_corpus(sources, tmp_path / "corpus", PROTEMBED)
        assert sorted(proteins(corpus.train)) == sorted(sequence(number) for number in range(100))
        assert (corpus.statistics.proteins, corpus.statistics.copies, len(corpus.valid)) == (103, 3, 0)
        assert corpus.statistics.letters["A"] == pytest.approx(0.05, abs=0.01)
        assert sum(corpus.statistics.letters.values()) == pytest.approx(1)
        check_sums(corpus)

    def test_the_order_of_the_file_stays_where_there_are_no_clusters(self, fasta: Path, tmp_path: Path) -> None:
        corpus = prepare_corpus([str(fasta)], tmp_path / "corpus", PROTEMBED)
        assert proteins(corpus.train) == list(SEQUENCES.values())
        assert corpus.train.clusters.tolist() == list(range(len(SEQUENCES) + 1))

    def test_members_of_a_cluster_stand_side_by_side(self, sources: list[str], tmp_path: Path) -> None:
        corpus = prepare_corpus(sources, tmp_path / "corpus", PROTEMBED)
        assert cluster_sets(corpus.train) == [set(range(number, 100, 20)) for number in range(20)]

    def test_equal_digests_are_compared_for_real(
        self, sources: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        true = parts.digest
        monkeypatch.setattr(parts, "digest", lambda data: 7 if len(data) < 64 else true(data))
        corpus = prepare_corpus(sources, tmp_path / "corpus", PROTEMBED)
        assert sorted(proteins(corpus.train)) == sorted(sequence(number) for number in range(100))

    def test_what_is_dropped_or_changed_is_counted(self, tmp_path: Path) -> None:
        source = write_fasta(tmp_path / "a.fasta", {"a": "MK-T.AY", "b": "MJJ*", "c": "MK", "d": "MXX"})
        corpus = prepare_corpus([str(source)], tmp_path / "corpus", PROTEMBED, min_residues=3)
        counts = corpus.statistics
        assert proteins(corpus.train) == ["MKTAY", "MXX"]
        assert (counts.short, counts.copies, counts.gaps, counts.unknown) == (1, 1, 2, 2)
        check_sums(corpus)

    def test_a_bad_record_is_named_and_leaves_no_corpus(self, sources: list[str], tmp_path: Path) -> None:
        bad = write_fasta(tmp_path / "bad.fasta", {"fine": "MK", "wrong": "M1K"})
        with pytest.raises(InputError, match=r"bad.fasta, line 3: record 'wrong'"):
            prepare_corpus([*sources, str(bad)], tmp_path / "corpus", PROTEMBED, workers=2)
        with pytest.raises(TrainingError, match="was not finished"):
            open_corpus(tmp_path / "corpus", PROTEMBED)


class TestValidation:
    def test_clusters_are_held_out_whole(self, sources: list[str], tmp_path: Path) -> None:
        corpus = prepare_corpus(sources, tmp_path / "corpus", PROTEMBED, valid_share=0.3)
        train, valid = cluster_sets(corpus.train), cluster_sets(corpus.valid)
        assert 1 < len(valid) < 12
        assert sorted(map(min, train + valid)) == list(range(20))
        assert all(members == set(range(min(members), 100, 20)) for members in train + valid)
        assert corpus.statistics.related == 0
        check_sums(corpus)

    def test_later_files_move_no_cluster(self, sources: list[str], tmp_path: Path) -> None:
        few = prepare_corpus(sources[:1], tmp_path / "few", PROTEMBED, valid_share=0.3)
        all_ = prepare_corpus(sources[::-1], tmp_path / "all", PROTEMBED, valid_share=0.3)
        lots = [{min(members) % 20 for members in cluster_sets(store)} for store in (few.valid, all_.valid)]
        assert lots[0] == lots[1]

    def test_the_seed_chooses(self, sources: list[str], tmp_path: Path) -> None:
        chosen = []
        for seed in range(4):
            corpus = prepare_corpus(sources, tmp_path / f"seed {seed}", PROTEMBED, valid_share=0.3, seed=seed)
            chosen.append(frozenset(map(min, cluster_sets(corpus.valid))))
        assert len(set(chosen)) > 2

    def test_the_share_is_kept(self, tmp_path: Path) -> None:
        source = write_fasta(tmp_path / "a.fasta", {f"P{n} cluster=C{n}": f"MK{'A' * n}" for n in range(1, 1500)})
        corpus = prepare_corpus([str(source)], tmp_path / "corpus", PROTEMBED, valid_share=0.2)
        assert len(corpus.valid) / 1499 == pytest.approx(0.2, abs=0.04)

    def test_without_clusters_proteins_are_drawn(self, tmp_path: Path) -> None:
        source = write_fasta(tmp_path / "a.fasta", {f"P{number}": sequence(number) for number in range(200)})
        corpus = prepare_corpus([str(source)], tmp_path / "corpus", PROTEMBED, valid_share=0.2)
        assert 20 < len(corpus.valid) < 60
        assert not set(proteins(corpus.train)) & set(proteins(corpus.valid))

    def test_files_of_their_own(self, sources: list[str], tmp_path: Path) -> None:
        """What stands in both is the user's word: it is kept, and said."""
        corpus = prepare_corpus(sources[:2], tmp_path / "corpus", PROTEMBED, valid=sources[2:])
        assert (len(corpus.train), len(corpus.valid)) == (80, 22)
        assert (corpus.statistics.copies, corpus.statistics.shared) == (1, 2)
        assert corpus.statistics.related == 80
        check_sums(corpus)

    def test_contradictions(self, sources: list[str], tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="contradict"):
            prepare_corpus(sources, tmp_path / "a", PROTEMBED, valid=sources, valid_share=0.1)
        with pytest.raises(UsageError, match="not between 0 and 1"):
            prepare_corpus(sources, tmp_path / "a", PROTEMBED, valid_share=1.0)


class TestAgain:
    def test_two_workers_make_what_one_makes(self, sources: list[str], tmp_path: Path) -> None:
        for workers in (1, 2):
            prepare_corpus(sources, tmp_path / f"by {workers}", PROTEMBED, workers=workers, valid_share=0.3)
        assert files(tmp_path / "by 1") == files(tmp_path / "by 2")

    def test_a_corpus_is_made_once(self, sources: list[str], tmp_path: Path) -> None:
        prepare_corpus(sources, tmp_path / "corpus", PROTEMBED)
        before = (tmp_path / "corpus" / "index.json").stat().st_mtime_ns
        prepare_corpus(sources, tmp_path / "corpus", PROTEMBED, workers=2, overwrite=True)
        assert (tmp_path / "corpus" / "index.json").stat().st_mtime_ns == before

    @pytest.mark.parametrize("workers", [1, 2])
    def test_a_killed_one_goes_on(self, sources: list[str], tmp_path: Path, workers: int) -> None:
        """kill -9 while the third file is read: the other parts are not made again, and the end is the same."""
        prepare_corpus(sources, tmp_path / "undisturbed", PROTEMBED)
        script = tmp_path / "script.py"
        script.write_text(SLOW.format(sources=sources, folder=str(tmp_path / "corpus"), workers=workers))
        folder = tmp_path / "corpus" / "parts"
        with subprocess.Popen([sys.executable, script]) as process:
            wait_for(lambda: len(list(folder.glob("*.part"))) == 2 and len(list(folder.glob(".3.fasta*"))) == 1)
            with pytest.raises(TrainingError, match="another process is preparing it"):
                prepare_corpus(sources, tmp_path / "corpus", PROTEMBED)
            process.send_signal(signal.SIGKILL)
        with pytest.raises(TrainingError, match="was not finished"):
            open_corpus(tmp_path / "corpus", PROTEMBED)
        wait_for(lambda: is_free(tmp_path / "corpus"))
        made = {path: path.stat().st_mtime_ns for path in folder.glob("*.part/*")}
        assert len(made) == 22
        prepare_corpus(sources, tmp_path / "corpus", PROTEMBED)
        assert all(path.stat().st_mtime_ns == before for path, before in made.items())
        assert files(tmp_path / "corpus") == files(tmp_path / "undisturbed")

    def test_a_changed_source_is_done_anew_and_the_others_are_not(self, sources: list[str], tmp_path: Path) -> None:
        prepare_corpus(sources, tmp_path / "corpus", PROTEMBED)
        made = {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus" / "parts").glob("[12]*/*")}
        write_fasta(Path(sources[2]), {"new": "MKTA"})
        with pytest.raises(TrainingError, match=r"3\.fasta has changed") as error:
            open_corpus(tmp_path / "corpus", PROTEMBED)
        assert "protembed prepare" in error.value.hint
        with pytest.raises(TrainingError, match=r"holds another corpus \(sources differ\)"):
            prepare_corpus(sources, tmp_path / "corpus", PROTEMBED)
        corpus = prepare_corpus(sources, tmp_path / "corpus", PROTEMBED, overwrite=True)
        assert len(corpus.train) == 81
        assert all(path.stat().st_mtime_ns == before for path, before in made.items())
        assert len(list((tmp_path / "corpus" / "parts").iterdir())) == 3

    def test_other_settings_are_another_corpus(self, sources: list[str], tmp_path: Path) -> None:
        prepare_corpus(sources, tmp_path / "corpus", PROTEMBED)
        with pytest.raises(TrainingError, match=r"\(valid_share, seed differ\)"):
            prepare_corpus(sources, tmp_path / "corpus", PROTEMBED, valid_share=0.1, seed=1)

    def test_a_place_that_cannot_be_written(self, sources: list[str], tmp_path: Path) -> None:
        with pytest.raises(OutputError, match=r"1\.fasta/corpus: cannot be written"):
            prepare_corpus(sources, Path(sources[0], "corpus"), PROTEMBED)

    def test_files_of_one_name_and_size_are_two(self, tmp_path: Path) -> None:
        for folder, letter in (("a", "A"), ("b", "C")):
            (tmp_path / folder).mkdir()
            write_fasta(tmp_path / folder / "x.fasta", {"p": letter * 9})
        names = [str(tmp_path / folder / "x.fasta") for folder in ("a", "b")]
        corpus = prepare_corpus(names, tmp_path / "corpus", PROTEMBED)
        assert proteins(corpus.train) == ["A" * 9, "C" * 9]

    def test_what_open_corpus_refuses(self, sources: list[str], tmp_path: Path) -> None:
        folder = tmp_path / "corpus"
        with pytest.raises(TrainingError, match="holds no corpus") as error:
            open_corpus(folder, PROTEMBED)
        assert "protembed prepare INPUT" in error.value.hint
        with pytest.raises(TrainingError, match="no such file"):
            prepare_corpus([str(tmp_path / "gone")], folder, PROTEMBED)
        prepare_corpus(sources, folder, PROTEMBED)
        tokens = next(folder.glob("parts/2*/tokens.bin"))
        whole = tokens.read_bytes()
        tokens.write_bytes(whole[:-1])
        with pytest.raises(TrainingError, match="was cut short"):
            open_corpus(folder, PROTEMBED)
        tokens.write_bytes(whole)
        array = folder / "train.lengths.npy"
        array.write_bytes(array.read_bytes()[:-1])
        with pytest.raises(TrainingError, match="index of train is damaged"):
            open_corpus(folder, PROTEMBED)
        index = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps({**index, "job": {**index["job"], "format": 0}}))
        with pytest.raises(TrainingError, match="another alphabet or version"):
            open_corpus(folder, PROTEMBED)
        (folder / "index.json").write_text("{")
        with pytest.raises(TrainingError, match="is damaged"):
            open_corpus(folder, PROTEMBED)


def flip(path: Path, place: int, bit: int = 3) -> bytes:
    """Flip one bit of a file; return what it was."""
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[place] ^= 1 << bit
    path.write_bytes(flipped)
    return whole


class TestDamage:
    def read_all(self, folder: Path) -> None:
        corpus = open_corpus(folder, PROTEMBED)
        for store in (corpus.train, corpus.valid):
            proteins(store)
            store.clusters.sum()

    def test_one_flipped_bit_anywhere_is_noticed(self, sources: list[str], tmp_path: Path) -> None:
        folder = tmp_path / "corpus"
        prepare_corpus(sources, folder, PROTEMBED, valid_share=0.3)
        self.read_all(folder)
        read = [*folder.glob("parts/*/tokens.bin*"), *folder.glob("*.npy"), folder / "index.json"]
        assert len(read) == 13
        for path in read:
            for place in range(0, path.stat().st_size, max(1, path.stat().st_size // 9)):
                whole = flip(path, place)
                with pytest.raises(TrainingError) as error:
                    self.read_all(folder)
                assert error.value.hint, path
                path.write_bytes(whole)
        self.read_all(folder)

    def test_one_in_what_is_only_read_to_prepare_is_noticed_then(self, sources: list[str], tmp_path: Path) -> None:
        folder = tmp_path / "corpus"
        prepare_corpus(sources, folder, PROTEMBED)
        for path in folder.glob("parts/1*/*"):
            if path.name.startswith(("tokens", "names")):  # names are read where there are homologs
                continue
            whole = flip(path, path.stat().st_size // 2)
            with pytest.raises(TrainingError, match=re.escape(str(path.parent))):
                prepare_corpus(sources, folder, PROTEMBED, seed=path.stat().st_size, valid_share=0.3, overwrite=True)
            path.write_bytes(whole)

    def test_only_what_is_read_is_checked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Blocks are checked once, when they are first touched: opening a large corpus stays quick."""
        source = write_fasta(tmp_path / "a.fasta", {f"p{n}": sequence(n) for n in range(200)})
        monkeypatch.setattr("protembed.training.corpus.arrays.BLOCK", 100)
        prepare_corpus([str(source)], tmp_path / "corpus", PROTEMBED)
        checked: list[int] = []
        true = zlib.crc32
        monkeypatch.setattr("zlib.crc32", lambda data, value=0: checked.append(len(data)) or true(data, value))
        store = open_corpus(tmp_path / "corpus", PROTEMBED).train
        checked.clear()
        for _ in range(3):
            assert PROTEMBED.decode(store[7]) == sequence(7)
        assert 0 < len(checked) <= 2
        assert [PROTEMBED.decode(protein) for protein in map(store.__getitem__, range(200))] == [
            sequence(n) for n in range(200)
        ]
        assert len(checked) == -(-store.residues // 100)

    @pytest.mark.parametrize(
        "text",
        ["[]", "3", '{"job": []}', '{"job": {}}', '{"job": {"format": 2}}', "[" * 100_000, f"[{'9' * 5000}]", "\xff"],
        ids=["list", "number", "no job", "empty", "bare", "nested", "digits", "bytes"],
    )
    def test_an_index_of_nonsense(self, sources: list[str], tmp_path: Path, text: str) -> None:
        folder = tmp_path / "corpus"
        prepare_corpus(sources, folder, PROTEMBED)
        (folder / "index.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(TrainingError) as error:
            open_corpus(folder, PROTEMBED)
        assert error.value.hint
        with pytest.raises(TrainingError):
            prepare_corpus(sources, folder, PROTEMBED)

    @pytest.mark.parametrize(
        "change",
        [
            {"proteins": "50"},
            {"proteins": -1},
            {"proteins": 10**30},
            {"residues": 1.5},
            {"letters": {"A": "x"}},
            {"more": 1},
        ],
        ids=str,
    )
    def test_counts_of_nonsense(self, sources: list[str], tmp_path: Path, change: dict[str, object]) -> None:
        folder = tmp_path / "corpus"
        prepare_corpus(sources, folder, PROTEMBED)
        path = next(folder.glob("parts/1*/part.json"))
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        with pytest.raises(TrainingError, match=re.escape(str(path.parent))):
            prepare_corpus(sources, folder, PROTEMBED, valid_share=0.3, overwrite=True)


SLOW = """
import time
from pathlib import Path
from protembed.sequences.alphabet import PROTEMBED
from protembed.training.corpus import parts
from protembed.training.corpus.corpus import prepare_corpus
read = parts.read_proteins

def slow(paths):
    for number, record in enumerate(read(paths)):
        if paths[0].name == "3.fasta" and number == 5:
            time.sleep(600)
        yield record

parts.read_proteins = slow
if __name__ == "__main__":
    prepare_corpus({sources}, Path({folder!r}), PROTEMBED, workers={workers})
"""


def wait_for(condition: object, seconds: float = 60) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def is_free(folder: Path) -> bool:
    try:
        with lock(folder):
            return True
    except OutputError:
        return False


def test_workers_end_with_a_killed_parent(sources: list[str], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SLOW.format(sources=sources, folder=str(tmp_path / "corpus"), workers=2))
    reading, writing = os.pipe()
    with subprocess.Popen([sys.executable, script], stderr=writing) as process:
        os.close(writing)
        wait_for(lambda: len(list((tmp_path / "corpus" / "parts").glob("*.part"))) == 2)
        process.kill()
    # The pipe ends only when the last process that holds it does.
    os.set_blocking(reading, False)
    wait_for(lambda: ended(reading), 20)
    os.close(reading)


def ended(pipe: int) -> bool:
    try:
        return os.read(pipe, 1 << 16) == b""
    except BlockingIOError:
        return False


def test_progress_ends_at_the_size_of_the_sources(sources: list[str], tmp_path: Path) -> None:
    job = CorpusJob(sources=tuple(sources), folder=tmp_path / "corpus", alphabet=PROTEMBED)
    told = list(job.run())
    assert [told[0].size, told[-1].size] == [0, sum(Path(source).stat().st_size for source in sources)]
    assert told[-1].residues == open_corpus(tmp_path / "corpus", PROTEMBED).statistics.residues


def test_prepare_command(run: Run, sources: list[str], tmp_path: Path) -> None:
    words = ["prepare", *sources, "-o", "corpus", "--valid-share", "0.3"]
    first = run(*words)
    assert first.returncode == 0, first.stderr
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in first.stdout.splitlines()}
    assert rows["read"][0] == "103"
    assert rows["dropped: copies"][0] == "3"
    assert int(rows["train"][0]) + int(rows["valid"][0]) == 100
    assert run(*words).stdout == first.stdout
    other = run("prepare", sources[0], "-o", "corpus")
    assert (other.returncode, other.stdout) == (2, "")
    assert "holds another corpus" in other.stderr
    assert "--overwrite" in other.stderr
    assert run("prepare", sources[0], "-o", "corpus", "--overwrite").returncode == 0
