"""Input on the command line: pipes, comments, empty records, what is no protein, job arrays; never a traceback."""

import gzip
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.conftest import SEQUENCES, write_fasta

Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Run a line of bash in the test's folder, where `protembed` is the command line."""

    def call(line: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        function = f'protembed() {{ "{sys.executable}" -m protembed "$@"; }}; '
        done = subprocess.run(
            ["bash", "-c", function + line],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            timeout=300,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return call


def vectors(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {name: values[()] for name, values in file.items()}


def test_every_way_in_gives_the_same_vectors(shell: Shell, model_file: Path, fasta: Path, tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(fasta.read_bytes()))
    ways = {
        "file": f"protembed embed {fasta} -m {model_file} -o file.h5",
        "substitution": f"protembed embed <(gzip -dc a.gz) -m {model_file} -o substitution.h5",
        "dash": f"gzip -dc a.gz | protembed embed - -m {model_file} -o dash.h5",
        "stdin": f"gzip -dc a.gz | protembed embed /dev/stdin -m {model_file} -o stdin.h5",
        "redirected": f"protembed embed /dev/stdin -m {model_file} -o redirected.h5 < a.gz",
        "fifo": f"mkfifo f; gzip -dc a.gz > f & protembed embed f -m {model_file} -o fifo.h5",
        "closed": f"protembed embed a.gz -m {model_file} -o closed.h5 <&-",
    }
    for way, line in ways.items():
        done = shell(line)
        assert done.returncode == 0, (way, done.stderr)
        found, expected = vectors(tmp_path / f"{way}.h5"), vectors(tmp_path / "file.h5")
        assert list(found) == list(expected)
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values)


def test_pipes_into_predict_and_check(shell: Shell, model_file: Path, fasta: Path) -> None:
    plain, piped = shell(f"protembed predict {fasta} --task ss3"), shell(f"protembed predict <(cat {fasta}) --task ss3")
    assert plain.returncode == piped.returncode == 0
    assert plain.stdout == piped.stdout
    assert shell(f"protembed embed {fasta} -m {model_file} -o a.h5").returncode == 0
    assert shell(f"protembed check a.h5 --input <(cat {fasta})").returncode == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("protembed embed - - -o a.h5 < in.fasta", "standard input is named twice"),
        ("cat in.fasta | protembed embed - /dev/stdin -o a.h5", "/dev/stdin is named twice"),
        ("protembed embed - -o a.h5 <&-", "standard input is closed"),
        ("protembed predict - --task ss3 <&-", "standard input is closed"),
        ("protembed embed /dev/zero -o a.h5", "/dev/zero: a device"),
        ("protembed embed /dev/null -o a.h5", "/dev/null: the file is empty"),
        ("printf '>a\\nM1\\n' | protembed embed - -o a.h5", "standard input, line 1: record 'a' has '1'"),
        ("protembed embed <(printf '>a\\nM1\\n') -o a.h5", "/dev/fd/"),
        ("printf '>a b\\0\\nMK\\n' | protembed embed - -o a.h5", "control character"),
        ("protembed embed in.fasta -o a.h5 --expect protein", "record 'gene' looks like DNA"),
        ("protembed predict in.fasta --task ss3 --expect protein", "record 'gene' looks like DNA"),
        ("protembed embed in.fasta -o a.h5 --unknown error", r"record 'stop' has a stop"),
        ("protembed embed in.fasta -o a.h5 --max-tokens 0", "not a positive number"),
        ("protembed embed in.fasta -o a.h5 --max-tokens ²", "not a positive number"),
        ("protembed embed in.fasta -o a.h5 --max-length 0", "max_length is 0"),
        ("protembed predict in.fasta --task ss3 --max-length 0", "max_length is 0"),
        ("protembed embed in.fasta -o a.h5 --layer 99", "layer 99 does not exist"),
        ("protembed embed in.fasta -o a.h5 --n-heads 0", "n_heads is 0"),
    ],
)
def test_one_clear_error(shell: Shell, tmp_path: Path, line: str, message: str) -> None:
    text = ">p\nMKTAYIAKQR\n>stop\nMKTAY*IAKQR\n>gene\nATGAAAACCGCGTATATTGCGAAACAG\n"
    (tmp_path / "in.fasta").write_text(text)
    done = shell(line)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("error:") == 1
    assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("model")] == ["in.fasta"]


def test_what_is_no_protein_is_warned_of_and_counted(shell: Shell, model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "in.fasta").write_text(">p\nMKTAY*IAKQR*\n>gene\nATGAAAACCGCGTATATTGCGAAACAG\n")
    done = shell(f"protembed embed in.fasta -m {model_file} -o a.h5")
    assert done.returncode == 0
    assert "warning: in.fasta, line 3: record 'gene' looks like DNA" in done.stderr
    assert "1 records that look like DNA" in done.stderr
    assert "1 letters outside the alphabet, read as X" in done.stderr
    quiet = shell(f"protembed embed in.fasta -m {model_file} -o b.h5 -q")
    assert "looks like DNA" in quiet.stderr


@pytest.mark.parametrize("key", ["id", "md5", "biotrainer"])
def test_empty_records_are_listed_when_they_are_skipped(
    shell: Shell, model_file: Path, tmp_path: Path, key: str
) -> None:
    write_fasta(tmp_path / "in.fasta", {"e1": "", "a": "MKTAYIAKQR", "e2": "", "b": "MKV", "e3": "-"})
    words = f"embed in.fasta -m {model_file} -o out.h5 --residues rows.h5 --key {key}"
    assert "record 'e1' has no residues" in shell(f"protembed {words}").stderr
    done = shell(f"protembed {words} --empty skip")
    assert done.returncode == 3, done.stderr
    assert "3 records without a result" in done.stderr
    assert len(vectors(tmp_path / "out.h5")) == len(vectors(tmp_path / "rows.h5")) == 2
    (failures,) = tmp_path.glob("out*failed.tsv")
    assert [line.split("\t")[0] for line in failures.read_text().splitlines()[1:]] == ["e1", "e2", "e3"]


def test_empty_records_alone(shell: Shell, model_file: Path, tmp_path: Path) -> None:
    write_fasta(tmp_path / "in.fasta", {"e1": "", "e2": ""})
    assert shell(f"protembed embed in.fasta -m {model_file} -o out.h5 --empty skip").returncode == 3
    assert vectors(tmp_path / "out.h5") == {}
    assert shell(f"protembed embed in.fasta -m {model_file} -o x.h5 --empty skip --dry-run").returncode == 0


def test_empty_records_in_predict(shell: Shell, tmp_path: Path) -> None:
    write_fasta(tmp_path / "in.fasta", {"a": "MKTAYIAKQR", "e": "", "b": "MKV"})
    done = shell("protembed predict in.fasta --task ss3 --empty skip")
    assert done.returncode == 3, done.stderr
    assert {line.split("\t")[0] for line in done.stdout.splitlines()[1:]} == {"a", "b"}
    assert "no residues" in done.stderr


def array(task: int, *tasks: int) -> dict[str, str]:
    """What SLURM sets for one task of an array."""
    values = {"ID": task, "MIN": min(tasks), "MAX": max(tasks), "COUNT": len(tasks), "STEP": 1}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def test_tasks_of_an_array_that_are_submitted_again(shell: Shell, model_file: Path, tmp_path: Path) -> None:
    write_fasta(tmp_path / "in.fasta", {f"{name[-9:]}{n}": s for n in range(3) for name, s in SEQUENCES.items()})
    line = f"protembed embed in.fasta -m {model_file} -o out.h5 --shard slurm/4 --resume"
    assert shell(f"protembed embed in.fasta -m {model_file} -o whole.h5").returncode == 0
    for task in (1, 4):
        assert shell(line, array(task, 1, 2, 3, 4)).returncode == 0
    for task in (2, 3):  # --array=2,3
        assert shell(line, array(task, 2, 3)).returncode == 0
    refused = shell(line.replace("slurm/4", "slurm"), array(2, 2, 3))
    assert refused.returncode == 2
    assert "--shard slurm/4" in refused.stderr
    assert shell(line.replace("slurm/4", "slurm"), array(3, 3)).returncode == 2
    shards = [f"out.shard-{number}-of-4.h5" for number in (1, 2, 3, 4)]
    assert sorted(path.name for path in tmp_path.glob("out*.h5")) == shards
    assert shell(f"protembed merge merged.h5 {' '.join(shards)}").returncode == 0
    merged, whole = vectors(tmp_path / "merged.h5"), vectors(tmp_path / "whole.h5")
    assert list(merged) == list(whole)
    for name, values in whole.items():
        np.testing.assert_allclose(merged[name], values, atol=1e-5)


def test_a_full_temporary_folder_is_no_traceback(shell: Shell, model_file: Path, fasta: Path, tmp_path: Path) -> None:
    """No file may grow beyond 1 kB: neither the temporary folder nor the output's has room for the copy."""
    done = shell(f"ulimit -f 1; cat {fasta} {fasta} | protembed embed - -m {model_file} -o a.h5")
    assert done.returncode == 2, done.stderr
    assert "standard input can be read once, and there is no room for its copy" in done.stderr
    assert "TMPDIR" in done.stderr


def test_the_example_for_slurm_asks_for_a_division_that_does_not_depend_on_the_submission() -> None:
    script = (Path(__file__).parents[2] / "examples" / "slurm_array.sh").read_text()
    assert '--shard "slurm/$shards"' in script
