"""Outputs of runs on real file systems: one owner, disks that are full, links, modes, and lists of failures."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest

from protembed.errors import OutputError, UsageError
from protembed.inference.embed import EmbedOptions
from protembed.outputs.files import lock
from protembed.outputs.journal import scan
from protembed.outputs.target import failures_of
from tests.inference.fakes import FakeBackend, finish, prepare, proteins
from tests.inference.test_run import in_a_child, stop_after

SKIP = EmbedOptions(pool="mean", long="skip", max_length=36)
"""One of the twelve proteins is too long."""


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    return proteins(tmp_path)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 160 kB."""
    mount = tmp_path / "small"
    mount.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(mount)]
    if shutil.which("mount") is None or subprocess.run(words, check=False, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=False)


def fill(folder: Path, leave: int) -> Path:
    """Fill a file system but for so many bytes."""
    filler = folder / "filler"
    filler.write_bytes(bytes(max(0, shutil.disk_usage(folder).free - leave)))
    return filler


@pytest.mark.parametrize("leave", [0, 4096, 8192, 12_288, 16_384, 20_480])
def test_a_disk_that_fills_up_is_one_clear_error_and_the_run_is_resumed(
    tmp_path: Path, fasta: Path, small: Path, leave: int
) -> None:
    """Whatever is the first that has no room: lock, folder, journal, the finished file, its list of failures."""
    finish(prepare(fasta, tmp_path / "whole.h5", options=SKIP))
    run = prepare(fasta, small / "out.h5", options=SKIP)
    with pytest.raises(OutputError, match=r"the disk is full|GB are free"):
        filler = None
        for number, _ in enumerate(run.run()):
            if number == (1 if leave else 0):
                filler = fill(small, leave)
    assert filler is not None
    assert not (small / "out.h5").exists()
    filler.unlink()
    finish(prepare(fasta, small / "out.h5", options=SKIP, resume=True))
    assert (small / "out.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert sorted(path.name for path in small.iterdir()) == ["out.failed.tsv", "out.h5"]


def test_a_disk_that_is_full_for_a_moment_loses_nothing(tmp_path: Path, fasta: Path, small: Path) -> None:
    fasta = proteins(tmp_path, 80)
    finish(prepare(fasta, tmp_path / "whole.h5"))
    run = prepare(fasta, small / "out.h5", resume=True)
    with pytest.raises(OutputError):
        for number, _ in enumerate(run.run()):
            if number == 20:
                filler = fill(small, 0)
    kept = scan(small / "out.h5.partial" / "journal").done
    assert 0 < kept < 80
    filler.unlink()
    filler = fill(small, 30_000)
    with pytest.raises(OutputError, match="GB are free"):
        finish(prepare(fasta, small / "out.h5", resume=True))
    assert scan(small / "out.h5.partial" / "journal").done == kept
    filler.unlink()
    backend = FakeBackend()
    finish(prepare(fasta, small / "out.h5", resume=True, backend=backend))
    assert (small / "out.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert 0 < backend.batches < 60


def test_the_space_that_a_run_takes_is_asked_for_before_it(tmp_path: Path, small: Path) -> None:
    fasta = proteins(tmp_path, 200)
    with pytest.raises(OutputError, match=r"the output takes about 0\.00025 GB until it is complete"):
        finish(prepare(fasta, small / "out.h5"))
    assert list(small.iterdir()) == []
    with pytest.raises(OutputError, match="small: the output takes about"):
        finish(prepare(fasta, tmp_path / "out.h5", small / "r.h5"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.fasta", "small"]


def test_residues_may_go_to_another_file_system(tmp_path: Path, fasta: Path, small: Path) -> None:
    finish(prepare(fasta, tmp_path / "a.h5", tmp_path / "ra.h5"))
    stop_after(prepare(fasta, tmp_path / "b.h5", small / "rb.h5"), 3)
    finish(prepare(fasta, tmp_path / "b.h5", small / "rb.h5", resume=True))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert (tmp_path / "ra.h5").read_bytes() == (small / "rb.h5").read_bytes()
    assert [path.name for path in small.iterdir()] == ["rb.h5"]


def test_a_link_to_another_file_system_keeps_its_target(tmp_path: Path, fasta: Path, small: Path) -> None:
    (tmp_path / "out.h5").symlink_to(small / "real.h5")
    assert finish(prepare(fasta, tmp_path / "out.h5", options=SKIP)).failed == 1
    assert (tmp_path / "out.h5").is_symlink()
    assert [path.name for path in small.iterdir()] == ["real.h5"]
    assert failures_of(tmp_path / "out.h5").exists()
    finish(prepare(fasta, tmp_path / "out.h5", options=SKIP, overwrite=True))
    assert (tmp_path / "out.h5").is_symlink()


@pytest.mark.parametrize("limit", [100, 3000, 9000, 15_000])
def test_ulimit_is_one_clear_error(tmp_path: Path, fasta: Path, limit: int) -> None:
    """`ulimit -f`: HDF5 by itself ends in a segmentation fault."""
    finish(prepare(fasta, tmp_path / "whole.h5"))

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            finish(prepare(fasta, tmp_path / "out.h5"))
        except OutputError as error:
            os._exit(7 if "the file is too large" in str(error) else 8)

    assert (tmp_path / "whole.h5").stat().st_size > 15_000
    assert in_a_child(work) == 7
    assert not (tmp_path / "out.h5").exists()
    finish(prepare(fasta, tmp_path / "out.h5", resume=True))
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.parametrize("missing", ["out", "residues"])
def test_both_targets_are_looked_at_before_computing(tmp_path: Path, fasta: Path, missing: str) -> None:
    places = {"out": tmp_path / "out.h5", "residues": tmp_path / "r.h5"}
    places[missing] = tmp_path / "none" / "x.h5"
    backend = FakeBackend()
    with pytest.raises(OutputError, match="none: no such folder"):
        finish(prepare(fasta, places["out"], places["residues"], backend=backend))
    assert backend.batches == 0
    assert [path.name for path in tmp_path.iterdir()] == ["in.fasta"]


SECOND = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from protembed.errors import OutputError
from tests.inference.fakes import FakeBackend, finish, prepare
folder = Path(sys.argv[2])
words = {"resume": {"resume": True}, "overwrite": {"overwrite": True}, "plain": {}}[sys.argv[3]]
backend = FakeBackend()
try:
    finish(prepare(folder / "in.fasta", folder / "out.h5", folder / "r.h5", backend=backend, **words))
except OutputError as error:
    print(backend.batches, error)
"""


@pytest.mark.parametrize("words", ["plain", "resume", "overwrite"])
def test_the_second_of_two_runs_on_one_output_is_refused(tmp_path: Path, fasta: Path, words: str) -> None:
    """As a job that is queued again while the old one lives, on a cluster that switches HDF5's own locks off."""
    finish(prepare(fasta, tmp_path / "whole.h5", tmp_path / "rw.h5"))
    run = prepare(fasta, tmp_path / "out.h5", tmp_path / "r.h5").run()
    for _ in range(3):
        next(run)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    root = Path(__file__).parents[2]
    second = subprocess.run(
        [sys.executable, "-c", SECOND, str(root), str(tmp_path), words],
        env={**os.environ, "HDF5_USE_FILE_LOCKING": "FALSE"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"0 {tmp_path}/out.h5: another run is working on this output (process {os.getpid()} on" in second.stdout
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before
    for _ in run:
        pass
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_runs_that_share_one_of_their_outputs_are_two_runs_on_it(tmp_path: Path, fasta: Path) -> None:
    with lock(tmp_path / "r.h5"), pytest.raises(OutputError, match=r"r.h5: another run"):
        finish(prepare(fasta, tmp_path / "out.h5", tmp_path / "r.h5", overwrite=True))
    assert [path.name for path in tmp_path.iterdir()] == ["in.fasta"]


def test_an_output_that_appears_meanwhile_is_kept(tmp_path: Path, fasta: Path) -> None:
    with pytest.raises(OutputError, match=r"out\.h5 exists"):
        for number, _ in enumerate(prepare(fasta, tmp_path / "out.h5").run()):
            if number == 3:
                (tmp_path / "out.h5").write_text("theirs")
    assert (tmp_path / "out.h5").read_text() == "theirs"
    (tmp_path / "out.h5").unlink()
    backend = FakeBackend()
    finish(prepare(fasta, tmp_path / "out.h5", backend=backend, resume=True))
    assert backend.batches == 0


def test_outputs_follow_the_umask(tmp_path: Path, fasta: Path) -> None:
    before = os.umask(0o027)
    try:
        finish(prepare(fasta, tmp_path / "out.h5", options=SKIP))
    finally:
        os.umask(before)
    for name in ("out.h5", "out.failed.tsv"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o640


def test_lists_of_failures_of_one_stem_are_apart(tmp_path: Path, fasta: Path) -> None:
    finish(prepare(fasta, tmp_path / "s.h5", options=SKIP))
    for name in ("s.hdf5", "s.x.h5"):
        finish(prepare(fasta, tmp_path / name, options=EmbedOptions(pool="mean")))
    assert "sp|P010|X\t37 residues" in (tmp_path / "s.failed.tsv").read_text()
    finish(prepare(fasta, tmp_path / "s.hdf5", options=SKIP, overwrite=True))
    finish(prepare(fasta, tmp_path / "s.h5", overwrite=True))
    assert not (tmp_path / "s.failed.tsv").exists(), "its own output has no failures any more"
    assert (tmp_path / "s.hdf5.failed.tsv").exists()


def test_a_list_that_may_be_of_another_output_is_not_replaced(tmp_path: Path, fasta: Path) -> None:
    finish(prepare(fasta, tmp_path / "s", options=SKIP))
    with pytest.raises(OutputError, match=r"s\.failed\.tsv may be the list of .*/s, and"):
        prepare(fasta, tmp_path / "s.h5")
    assert (tmp_path / "s.failed.tsv").exists()


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.h5.gz", "x.npz", "x.fasta", "x.safetensors"])
def test_names_that_are_not_of_hdf5_are_refused(tmp_path: Path, fasta: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is not one of HDF5"):
        prepare(fasta, tmp_path / name)
    with pytest.raises(UsageError, match="is not one of HDF5"):
        prepare(fasta, tmp_path / "out.h5", tmp_path / name)


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/null", "/dev/fd/1", "PIPE"])
def test_hdf5_goes_to_files_only(tmp_path: Path, fasta: Path, name: str) -> None:
    os.mkfifo(tmp_path / "PIPE")
    out = tmp_path / name if name == "PIPE" else Path(name)
    with pytest.raises(UsageError, match="HDF5 cannot go to"):
        prepare(fasta, out, overwrite=True)
    assert Path("/dev/null").is_char_device()


def test_two_names_of_one_file_are_not_two_outputs(tmp_path: Path, fasta: Path) -> None:
    (tmp_path / "link.h5").symlink_to(tmp_path / "out.h5")
    with pytest.raises(OutputError, match="are the same file"):
        finish(prepare(fasta, tmp_path / "out.h5", tmp_path / "link.h5"))


def test_a_work_folder_that_is_a_link_is_not_followed(tmp_path: Path, fasta: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "journal").write_text("precious")
    (tmp_path / "out.h5.partial").symlink_to(tmp_path / "precious")
    for words in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(OutputError, match="is a link"):
            finish(prepare(fasta, tmp_path / "out.h5", **words))
    assert (tmp_path / "precious" / "journal").read_text() == "precious"


def test_an_output_in_the_work_folder_of_another_is_refused(tmp_path: Path, fasta: Path) -> None:
    (tmp_path / "out.h5.partial").mkdir()
    with pytest.raises(OutputError, match="lies in the work folder"):
        finish(prepare(fasta, tmp_path / "out.h5", tmp_path / "out.h5.partial" / "r.h5", overwrite=True))


@pytest.mark.skipif(os.geteuid() != 0, reason="files of other users can be made by root only")
def test_a_planted_journal_is_not_resumed(tmp_path: Path, fasta: Path) -> None:
    """Where everyone may write, as in /tmp; a shared folder of a project is resumed by whoever may write there."""
    stop_after(prepare(fasta, tmp_path / "out.h5"), 3)
    os.chown(tmp_path / "out.h5.partial" / "journal", 12345, 12345)
    tmp_path.chmod(0o1777)
    with pytest.raises(OutputError, match="belongs to another user"):
        finish(prepare(fasta, tmp_path / "out.h5", resume=True))
    tmp_path.chmod(0o775)
    finish(prepare(fasta, tmp_path / "out.h5", resume=True))


def test_files_of_an_older_version_in_a_work_folder_are_cleared(tmp_path: Path, fasta: Path) -> None:
    folder = tmp_path / "out.h5.partial"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    (folder / "0000000000-0000000004.proteins.h5").write_text("x")
    finish(prepare(fasta, tmp_path / "out.h5", resume=True))
    with h5py.File(tmp_path / "out.h5") as file:
        assert len(file) == 12
    assert not folder.exists()
