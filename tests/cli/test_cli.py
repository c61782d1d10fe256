"""The command line as its users call it: outputs, exit status, and one clear error for whatever goes wrong."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

import protembed
from protembed.outputs.journal import scan
from tests.conftest import SEQUENCES, Run, write_fasta


def datasets(path: Path) -> dict[str, bytes]:
    with h5py.File(path) as file:
        return {key: file[key][()].tobytes() for key in file}


def embed(run: Run, model: Path, *words: object, status: int = 0) -> str:
    result = run("embed", "-m", model, *words)
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return result.stderr


def test_embed_writes_two_flat_files(run: Run, model_file: Path, fasta: Path, tmp_path: Path) -> None:
    said = embed(run, model_file, fasta, "-o", "out.h5", "--residues", "out.residues.h5")
    assert "6 records" in said
    with h5py.File(tmp_path / "out.h5") as proteins, h5py.File(tmp_path / "out.residues.h5") as residues:
        assert list(proteins) == list(residues) == list(SEQUENCES)
        for key, sequence in SEQUENCES.items():
            assert proteins[key].shape == (32,)
            assert proteins[key].dtype == np.float32
            assert residues[key].shape == (len(sequence), 32)
            assert residues[key].dtype == np.float16
            assert proteins[key].attrs["original_id"] == key
            assert proteins[key].attrs["length"] == len(sequence)
            np.testing.assert_allclose(residues[key][()].astype(np.float32).mean(axis=0), proteins[key][()], atol=1e-3)
        for file in (proteins, residues):
            assert file.attrs["model_name"] == "tiny"
            assert len(file.attrs["weights_sha256"]) == 64
            assert file.attrs["complete"]
    assert not list(tmp_path.glob("*.partial"))


def test_embed_equals_the_python_api(run: Run, model_file: Path, fasta: Path, tmp_path: Path) -> None:
    embed(run, model_file, fasta, "-o", "out.h5")
    model = protembed.load(model_file)
    with protembed.open(tmp_path / "out.h5") as store:
        for record, vector in model.embed(fasta):
            np.testing.assert_allclose(store[record.id], vector, atol=1e-6)


def test_standard_input_and_several_files(run: Run, model_file: Path, tmp_path: Path) -> None:
    write_fasta(tmp_path / "a.fasta", {"a": "MKTA"})
    write_fasta(tmp_path / "c.fasta", {"c": "MKTW"})
    result = run("embed", "a.fasta", "-", "c.fasta", "-m", model_file, "-o", "out.h5", stdin=">b\nMKTAYI\n")
    assert result.returncode == 0, result.stderr
    with protembed.open(tmp_path / "out.h5") as store:
        assert list(store) == ["a", "b", "c"]


def test_strange_ids(run: Run, model_file: Path, tmp_path: Path) -> None:
    ids = ["a/b/c", "x|y", "x" * 300, "Protéine_ß", "..", "."]
    write_fasta(tmp_path / "in.fasta", {f"{name} some words": "MKTA" for name in ids})
    embed(run, model_file, "in.fasta", "-o", "out.h5")
    with protembed.open(tmp_path / "out.h5") as store:
        assert list(store) == ids
        assert all(store[name].shape == (32,) for name in ids)
    with h5py.File(tmp_path / "out.h5") as file:
        assert all(isinstance(file[key], h5py.Dataset) for key in file)


def test_what_was_not_plain_is_said(run: Run, model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "in.fasta").write_text(">a\nMKJJ--\n>b\nMKTAYIAKQR\n>a\nMK\n")
    said = embed(run, model_file, "in.fasta", "-o", "out.h5", "--duplicates", "first", "--max-length", 6)
    for words in ("2 letters outside the alphabet", "2 gaps removed", "1 repeated records", "1 proteins longer"):
        assert words in said


def test_skipped_proteins_are_listed_and_exit_3(run: Run, model_file: Path, fasta: Path, tmp_path: Path) -> None:
    embed(run, model_file, fasta, "-o", "out.h5", "--long", "skip", "--max-length", 150, status=3)
    long = [name for name, sequence in SEQUENCES.items() if len(sequence) > 150]
    listed = (tmp_path / "out.failed.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed[1:]] == long
    with protembed.open(tmp_path / "out.h5") as store:
        assert list(store) == [name for name in SEQUENCES if name not in long]


def test_shards_merge_to_the_same_file(run: Run, model_file: Path, fasta: Path, tmp_path: Path) -> None:
    embed(run, model_file, fasta, "-o", "whole.h5", "--max-tokens", 1)
    for number in (1, 2, 3):
        embed(run, model_file, fasta, "-o", "out.h5", "--shard", f"{number}/3", "--max-tokens", 1)
    shards = sorted(path.name for path in tmp_path.glob("out.shard-*.h5"))
    assert shards == [f"out.shard-{number}-of-3.h5" for number in (1, 2, 3)]
    assert run("merge", "merged.h5", *reversed(shards)).returncode == 0
    assert datasets(tmp_path / "merged.h5") == datasets(tmp_path / "whole.h5")
    assert run("check", "merged.h5", "--input", fasta).returncode == 0
    missing = run("merge", "again.h5", *shards[:2])
    assert missing.returncode == 2
    assert "shard 3 is missing" in missing.stderr


def test_more_shards_than_records(run: Run, model_file: Path, tmp_path: Path) -> None:
    write_fasta(tmp_path / "one.fasta", {"a": "MKTA"})
    for number in (1, 2):
        embed(run, model_file, "one.fasta", "-o", "out.h5", "--shard", f"{number}/2")
    assert run("embed", "one.fasta", "-m", model_file, "-o", "o.h5", "--shard", "1/2", "--dry-run").returncode == 0
    assert run("merge", "out.h5", "out.shard-1-of-2.h5", "out.shard-2-of-2.h5").returncode == 0
    assert list(datasets(tmp_path / "out.h5")) == ["a"]


def test_check_finds_what_is_missing(run: Run, model_file: Path, fasta: Path, tmp_path: Path) -> None:
    embed(run, model_file, fasta, "-o", "out.h5")
    more = write_fasta(tmp_path / "more.fasta", {**SEQUENCES, "new": "MK"})
    result = run("check", "out.h5", "--input", more)
    assert result.returncode == 2
    assert "record 'new' is missing" in result.stderr


def test_dry_run_computes_nothing(run: Run, model_file: Path, fasta: Path, tmp_path: Path) -> None:
    result = run("embed", fasta, "-m", model_file, "-o", "out.h5", "--dry-run")
    assert result.returncode == 0
    assert "records\t6" in result.stdout
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        ("", (), "the file is empty"),
        ("MKTA\n", (), "not FASTA"),
        (">a\nMK\n>b\n", (), "line 3: record 'b' has no residues"),
        (">a\nMK\n>a\nMA\n", (), "line 3: record 'a' has the same id"),
        (">a\nMJ\n", ("--unknown", "error"), "record 'a' has the letter J"),
        (">a\nMKTA\n", ("--long", "error", "--max-length", "3"), "more than 3 residues"),
        (">a\nMK\n", ("-m", "no_such_model"), "no model is called 'no_such_model'"),
        (">a\nMK\n", ("--layer", "9"), "layer 9 does not exist"),
        (">a\nMK\n", ("--shard", "3/2"), "shard 3/2 does not exist"),
        (">a\nMK\n", ("--max-tokens", "few"), "not a positive number"),
        (">a\nMK\n", ("--device", "tpu"), "device"),
        (">a\nMK\n", ("--residues", "out.h5"), "the same file"),
        (">a\nMK\n", ("-o", "no/such/folder/out.h5"), "no such folder"),
        (">a\nMK\n", ("--threads", "0"), "threads"),
    ],
)
def test_bad_input_is_one_clear_error(
    run: Run, model_file: Path, tmp_path: Path, content: str, words: tuple[str, ...], message: str
) -> None:
    (tmp_path / "in.fasta").write_text(content)
    said = embed(run, model_file, "in.fasta", "-o", "out.h5", *words, status=2)
    assert message in said
    assert not list(tmp_path.glob("out*"))


def test_no_output_is_named(run: Run, model_file: Path, fasta: Path) -> None:
    assert "no output is named" in embed(run, model_file, fasta, status=2)


def test_an_output_is_not_replaced_unasked(run: Run, model_file: Path, fasta: Path, tmp_path: Path) -> None:
    (tmp_path / "out.h5").write_text("precious")
    assert "out.h5 exists" in embed(run, model_file, fasta, "-o", "out.h5", status=2)
    assert (tmp_path / "out.h5").read_text() == "precious"
    embed(run, model_file, fasta, "-o", "out.h5", "--overwrite")
    assert len(datasets(tmp_path / "out.h5")) == 6


@pytest.mark.parametrize("damage", ["truncated", "altered", "other"])
def test_damaged_models(run: Run, model_file: Path, fasta: Path, tmp_path: Path, damage: str) -> None:
    content = bytearray(model_file.read_bytes())
    if damage == "truncated":
        content = content[:-100]
    elif damage == "altered":
        content[-100] ^= 1
    else:
        content = bytearray(b"hello")
    (tmp_path / "bad.safetensors").write_bytes(content)
    said = embed(run, tmp_path / "bad.safetensors", fasta, "-o", "out.h5", status=2)
    assert "bad.safetensors" in said


def test_a_forty_thousand_residue_protein(run: Run, model_file: Path, tmp_path: Path) -> None:
    sequence = "".join(SEQUENCES.values())
    write_fasta(tmp_path / "in.fasta", {"titin": (sequence * 60)[:40_000], "small": "MKTA"})
    embed(run, model_file, "in.fasta", "-o", "out.h5", "--residues", "r.h5", "--max-length", 1000)
    with protembed.open(tmp_path / "r.h5") as store:
        assert store["titin"].shape == (40_000, 32)
        assert np.isfinite(store["titin"]).all()


class Slow:
    """Starts `embed` in a process that is slow enough to be stopped in the middle."""

    def __init__(self, folder: Path, model: Path, fasta: Path) -> None:
        script = folder / "slow.py"
        script.write_text(
            "import sys, time\n"
            "from protembed import cli\nfrom protembed.backends import torch_backend\n"
            "real = torch_backend.TorchBackend.run\n"
            "def slow(self, *words):\n"
            "    time.sleep(0.15)\n"
            "    return real(self, *words)\n"
            "torch_backend.TorchBackend.run = slow\n"
            "cli.main()\n"
        )
        self.partial = folder / "out.h5.partial"
        words = ["embed", str(fasta), "-m", str(model), "-o", "out.h5", "--residues", "r.h5", "--max-tokens", "1"]
        self.process = subprocess.Popen(
            [sys.executable, str(script), *words],
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
            # A shell that runs the tests in the background lets them inherit an ignored SIGINT.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def stop(self, number: signal.Signals, after: int) -> int:
        """Send a signal when so many records are done; return the exit status."""
        until = time.monotonic() + 60
        while scan(self.partial / "journal").done < after:
            assert time.monotonic() < until
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.01)
        os.kill(self.process.pid, number)
        self.process.communicate()
        return self.process.returncode


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_resume_ends_as_an_undisturbed_run(
    run: Run, model_file: Path, fasta: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    words = (fasta, "-o", "out.h5", "--residues", "r.h5", "--max-tokens", 1)
    assert Slow(tmp_path, model_file, fasta).stop(number, after=3) == status
    assert not (tmp_path / "out.h5").exists()
    assert not (tmp_path / "r.h5").exists()
    assert 3 <= scan(tmp_path / "out.h5.partial" / "journal").done < 6
    assert "did not finish" in embed(run, model_file, *words, status=2)
    embed(run, model_file, *words, "--resume")
    resumed = [(tmp_path / name).read_bytes() for name in ("out.h5", "r.h5")]
    embed(run, model_file, *words, "--overwrite")
    assert resumed == [(tmp_path / name).read_bytes() for name in ("out.h5", "r.h5")]
    assert not list(tmp_path.glob("*.partial"))


def test_resume_of_a_finished_run_has_nothing_to_do(run: Run, model_file: Path, fasta: Path, tmp_path: Path) -> None:
    """A job that is submitted again after its end must not fail."""
    words = (fasta, "-o", "out.h5", "--residues", "r.h5")
    embed(run, model_file, *words)
    before = (tmp_path / "out.h5").stat().st_mtime_ns
    embed(run, model_file, *words, "--resume")
    assert (tmp_path / "out.h5").stat().st_mtime_ns == before
    assert "exists" in embed(run, model_file, *words, "--resume", "--pool", "max", status=2)
    (tmp_path / "r.h5").unlink()
    embed(run, model_file, *words, "--resume")
    assert (tmp_path / "r.h5").exists()


def test_resume_refuses_another_run(run: Run, model_file: Path, fasta: Path, tmp_path: Path) -> None:
    Slow(tmp_path, model_file, fasta).stop(signal.SIGKILL, after=2)
    words = (fasta, "-o", "out.h5", "--residues", "r.h5", "--pool", "max", "--resume")
    assert "other input, model or options" in embed(run, model_file, *words, status=2)


def test_a_full_disk_is_one_clear_error(run: Run, model_file: Path, fasta: Path, tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(mount)], check=False)
    if mounted.returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        said = embed(run, model_file, fasta, "-o", "small/out.h5", "--residues", "small/r.h5", status=2)
        assert "GB are free" in said
        write_fasta(tmp_path / "one.fasta", {"a": "MKTA"})
        (mount / "filler").write_bytes(b"0" * 40 * 1024)
        said = embed(run, model_file, tmp_path / "one.fasta", "-o", "small/out.h5", status=2)
        assert "the disk is full" in said
        assert not (mount / "out.h5").exists()
    finally:
        subprocess.run(["umount", str(mount)], check=False)


def test_help_is_quick_and_light(run: Run) -> None:
    result = run("--help")
    assert result.returncode == 0
    assert "embed" in result.stdout


def test_models_lists_what_is_shipped(run: Run) -> None:
    result = run("models")
    assert result.returncode == 0
    assert result.stdout.startswith("name\tparameters")


def test_convert_round_trip(run: Run, model_file: Path, fasta: Path, tmp_path: Path) -> None:
    assert run("convert", model_file, "-o", "copy.safetensors").returncode == 0
    for name, path in (("a", model_file), ("b", tmp_path / "copy.safetensors")):
        embed(run, path, fasta, "-o", f"{name}.h5")
    assert datasets(tmp_path / "a.h5") == datasets(tmp_path / "b.h5")
    assert "exists" in run("convert", model_file, "-o", "copy.safetensors").stderr
