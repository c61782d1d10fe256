"""Runs as a shell sees them: outputs that would replace what is read, shards and resume of predict, devices."""

import os
from pathlib import Path

import pytest

from tests.conftest import Run, write_fasta

PROTEINS = {f"P{number}": "MKTAYIAKQRWWPPDE"[number:] + "MKVL" for number in range(6)}


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    return write_fasta(tmp_path / "x", PROTEINS)


@pytest.mark.parametrize(
    "words", [("embed", "-o", "x"), ("embed", "-o", "hard"), ("embed", "--residues", "soft"), ("predict", "-o", "./x")]
)
def test_no_command_replaces_its_input(run: Run, fasta: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    before = fasta.read_bytes()
    os.link(fasta, tmp_path / "hard")
    (tmp_path / "soft").symlink_to("x")
    command, *target = words
    result = run(command, "x", *target, "--overwrite", *(["--task", "ss3"] if command == "predict" else []))
    assert result.returncode == 2, result.stderr
    assert "is an input, too" in result.stderr
    assert fasta.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hard", "soft", "x"]


def test_shards_of_predictions_merge_to_what_one_run_writes(run: Run, fasta: Path, tmp_path: Path) -> None:
    words = ("predict", "x", "--task", "ss3", "--max-tokens", "1", "--resume")
    assert run(*words, "-o", "whole.tsv").returncode == 0
    before = (tmp_path / "whole.tsv").stat().st_mtime_ns
    for number in (1, 2):
        assert run(*words, "-o", "out.tsv", "--shard", f"{number}/2").returncode == 0
    merged = run("merge", "out.tsv", "out.shard-1-of-2.tsv", "out.shard-2-of-2.tsv")
    assert merged.returncode == 0, merged.stderr
    assert (tmp_path / "out.tsv").read_bytes() == (tmp_path / "whole.tsv").read_bytes()
    again = run(*words, "-o", "whole.tsv")
    assert (again.returncode, (tmp_path / "whole.tsv").stat().st_mtime_ns) == (0, before)
    other = run(*words, "-o", "whole.tsv", "--key", "md5")
    assert (other.returncode, "whole.tsv exists" in other.stderr) == (2, True)


def test_predictions_of_repeated_records(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in.fasta").write_text(">a\nMKTA\n>a\nMKWW\n")
    words = ("predict", "in.fasta", "--task", "localisation")
    refused = run(*words)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "has the same id" in refused.stderr
    both = run(*words, "--duplicates", "suffix")
    assert [line.split("\t")[0] for line in both.stdout.splitlines()[1:]] == ["a", "a_2"]


def test_a_device_is_never_replaced(run: Run, fasta: Path) -> None:
    for out in ("/dev/null", "/dev/stdout"):
        result = run("predict", "x", "--task", "ss3", "-o", out, "--overwrite")
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("\n") == (0 if out == "/dev/null" else 1 + sum(map(len, PROTEINS.values())))
    assert Path("/dev/null").is_char_device()
    refused = run("embed", "x", "-o", "/dev/null", "--overwrite")
    assert (refused.returncode, "HDF5 cannot go to" in refused.stderr) == (2, True)
