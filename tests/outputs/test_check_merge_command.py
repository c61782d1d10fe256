"""The command line of `check` and `merge`, on what the other commands write."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.conftest import SEQUENCES, Run, write_fasta
from tests.inference.test_recompute import write_head

LONG = {**SEQUENCES, "long": "MKTAYIAKQR" * 30}


def ok(run: Run, *words: object, status: int = 0) -> str:
    """Run a command; return what it said."""
    result = run(*words)
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


def test_shards_with_failures_merge_to_the_bytes_of_one_run(run: Run, model_file: Path, tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "long.fasta", LONG)
    how = ("embed", fasta, "-m", model_file, "--long", "skip", "--max-length", 160, "--max-tokens", 1, "-q")
    ok(run, *how, "-o", "whole.h5", "--residues", "rows.h5", status=3)
    for number in (1, 2):
        ok(run, *how, "-o", "out.h5", "--residues", "r.h5", "--shard", f"{number}/2", status=3 if number == 2 else 0)
    for out, whole in (("out", "whole"), ("r", "rows")):
        shards = [f"{out}.shard-{number}-of-2.h5" for number in (2, 1)]
        said = ok(run, "merge", f"{out}.h5", *shards, status=3)
        assert f"{out}.h5: 5 records from 2 files" in said.splitlines()
        assert f"2 records without a result, listed in {out}.failed.tsv" in said.splitlines()
        assert (tmp_path / f"{out}.h5").read_bytes() == (tmp_path / f"{whole}.h5").read_bytes()
        assert (tmp_path / f"{out}.failed.tsv").read_text() == (tmp_path / f"{whole}.failed.tsv").read_text()
        said = ok(run, "check", f"{out}.h5", "--input", fasta)
        assert "5 records, complete, of tiny" in said
        assert f"2 listed without a result in {out}.failed.tsv" in said


def test_check_computes_again_with_the_model_of_the_file_or_the_one_named(
    run: Run, model_file: Path, fasta: Path, tmp_path: Path
) -> None:
    ok(run, "embed", fasta, "-o", "out.h5", "-q")
    assert "3 records computed again are the same" in ok(run, "check", "out.h5", "--input", fasta, "--recompute", 3)
    other = ok(run, "check", "out.h5", "--input", fasta, "-m", model_file, status=2)
    assert "was computed with other weights than those of tiny" in other
    assert "made with protembed-6m" in ok(run, "check", "out.h5", "--input", fasta, "-m", "protembed-6m")
    ok(run, "embed", fasta, "-m", model_file, "-o", "tiny.h5", "-q")
    unknown = ok(run, "check", "tiny.h5", "--input", fasta, "--recompute", 1, status=2)
    assert "no model is called 'tiny'" in unknown
    ok(run, "check", "tiny.h5", "--input", fasta, "--recompute", 6, "-m", model_file)


def test_check_needs_no_options_repeated(run: Run, model_file: Path, tmp_path: Path) -> None:
    fasta = tmp_path / "twice.fasta"
    fasta.write_text(">A first\nMKTAYIAK\n>B\nMKTAYI\n>A second\nMKTAYIAKQR\n")
    for number, options in enumerate([("--duplicates", "suffix"), ("--duplicates", "first"), ("--key", "md5")]):
        ok(run, "embed", fasta, "-m", model_file, "-o", f"{number}.h5", "-q", *options)
        ok(run, "check", f"{number}.h5", "--input", fasta, "--recompute", 2, "-m", model_file)
    wrong = ok(run, "check", "2.h5", "--input", fasta, "--key", "id", status=2)
    assert "error: 2.h5 was written with key md5, not id" in wrong


def test_predictions_are_checked_and_their_shards_merged(
    run: Run, model_file: Path, fasta: Path, tmp_path: Path
) -> None:
    head = write_head(tmp_path, model_file, "ss3")
    how = ("predict", fasta, "-m", model_file, "--task", head, "--max-tokens", 1, "-q")
    for form in ("h5", "tsv"):
        ok(run, *how, "-o", f"whole.{form}")
        for number in (1, 2):
            ok(run, *how, "-o", f"out.{form}", "--shard", f"{number}/2")
        ok(run, "merge", f"out.{form}", f"out.shard-2-of-2.{form}", f"out.shard-1-of-2.{form}")
        assert (tmp_path / f"out.{form}").read_bytes() == (tmp_path / f"whole.{form}").read_bytes()
    ok(run, "check", "out.h5", "--input", fasta, "--recompute", 2, "-m", model_file, "--head", head)


def test_shards_of_two_versions_of_a_file_do_not_merge(run: Run, model_file: Path, tmp_path: Path) -> None:
    today = write_fasta(tmp_path / "today.fasta", SEQUENCES)
    yesterday = write_fasta(tmp_path / "yesterday.fasta", {**SEQUENCES, "new": "MKTAYIAK"})
    ok(run, "embed", yesterday, "-m", model_file, "-o", "out.h5", "--shard", "1/2", "-q")
    ok(run, "embed", today, "-m", model_file, "-o", "out.h5", "--shard", "2/2", "-q")
    said = ok(run, "merge", "out.h5", "out.shard-1-of-2.h5", "out.shard-2-of-2.h5", status=2)
    assert said.startswith("error: out.shard-2-of-2.h5 was made from another input than out.shard-1-of-2.h5\nhint: ")
    assert not (tmp_path / "out.h5").exists()


def test_a_run_over_the_merged_file_finds_it_complete(run: Run, model_file: Path, fasta: Path, tmp_path: Path) -> None:
    how = ("embed", fasta, "-m", model_file, "-o", "out.h5")
    for number in (1, 2):
        ok(run, *how, "--shard", f"{number}/2", "-q")
    ok(run, "merge", "out.h5", "out.shard-1-of-2.h5", "out.shard-2-of-2.h5")
    before = (tmp_path / "out.h5").stat().st_mtime_ns
    ok(run, *how, "--resume")
    assert (tmp_path / "out.h5").stat().st_mtime_ns == before


@pytest.mark.parametrize("command", ["check", "merge"])
def test_hostile_files_end_in_one_error(run: Run, model_file: Path, fasta: Path, tmp_path: Path, command: str) -> None:
    ok(run, "embed", fasta, "-m", model_file, "-o", "out.h5", "--shard", "1/2", "-q")
    bad = shutil.copy(tmp_path / "out.shard-1-of-2.h5", tmp_path / "bad.h5")
    with h5py.File(bad, "r+") as file:
        file["\x1b[31mred"] = h5py.ExternalLink("/etc/passwd", "/")
    words = ("check", "bad.h5", "--input", fasta) if command == "check" else ("merge", "out.h5", "bad.h5", "bad.h5")
    said = ok(run, *words, status=2)
    assert len(said.splitlines()) <= 2
    assert "\x1b" not in said


def test_a_changed_value_is_one_error_that_names_file_line_and_record(
    run: Run, model_file: Path, fasta: Path, tmp_path: Path
) -> None:
    ok(run, "embed", fasta, "-m", model_file, "-o", "out.h5", "-q")
    with h5py.File(tmp_path / "out.h5", "r+") as file:
        values = file["sp|P69905|HBA_HUMAN"]
        values[3] = np.nextafter(values[3], 9, dtype=np.float32)
    said = ok(run, "check", "out.h5", "--input", fasta, status=2).splitlines()
    place = f"{fasta}, line 5: record 'sp|P69905|HBA_HUMAN'"
    assert said == [
        f"error: out.h5: {place} is not what was written: its checksum is wrong",
        "hint: Compute it again.",
    ]
