"""Whatever stops a run: nothing is lost, nothing comes twice, and the bytes are those of an undisturbed run."""

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from protembed import interrupts
from protembed.errors import InputError, OutOfMemoryError, OutputError, UsageError
from protembed.inference.contacts import ContactOptions, contact_run
from protembed.inference.embed import EmbedOptions
from protembed.inference.run import Run, RunOptions
from protembed.outputs.journal import Journal, scan
from protembed.outputs.target import failures_of
from protembed.sequences.shard import Shard
from tests.inference.fakes import FakeBackend, finish, prepare, proteins

NAMES = ("out.h5", "r.h5", "out.failed.tsv", "r.failed.tsv")


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    return proteins(tmp_path)


@pytest.fixture(autouse=True)
def _no_signal() -> Iterator[None]:
    interrupts.clear()
    yield
    interrupts.clear()


def start(folder: Path, **words: Any) -> Run[Any]:
    """Prepare a run with two outputs, one of whose records fails."""
    options = EmbedOptions(pool="mean", residues=True, long="skip", max_length=36)
    return prepare(folder / "in.fasta", folder / "out.h5", folder / "r.h5", options=options, **words)


def outputs(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in NAMES]


@pytest.fixture
def undisturbed(tmp_path: Path, fasta: Path) -> list[bytes]:
    """Return the bytes of a run that nothing stopped, and remove its files."""
    run = finish(start(tmp_path))
    assert run.failed == 1
    found = outputs(tmp_path)
    for name in NAMES:
        (tmp_path / name).unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["in.fasta"]
    return found


def in_a_child(work: Callable[[], object]) -> int:
    """Do something in a process of its own; return its status as os.waitstatus_to_exitcode gives it."""
    process = os.fork()
    if process == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


NAMING = ("open", "mkdir", "rmdir", "unlink", "link", "replace", "fsync", "ftruncate")
WRITING = ("write", "pwrite")


def die_at(number: int, calls: tuple[str, ...] = NAMING + WRITING) -> None:
    """Let this process be killed just before the call of that number, whichever of these functions of `os` it is."""
    left = number

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*words, **named)

        return call

    for name in calls:
        setattr(os, name, dying(getattr(os, name)))


@pytest.mark.parametrize(("calls", "step", "least"), [(NAMING, 1, 40), (WRITING, 7, 8)], ids=["naming", "writing"])
def test_a_run_killed_at_any_call_of_the_system_is_resumed_to_the_same_bytes(
    tmp_path: Path, undisturbed: list[bytes], calls: tuple[str, ...], step: int, least: int
) -> None:
    number = kills = 0
    while True:

        def work(number: int = number) -> None:
            run = start(tmp_path)
            die_at(number, calls)
            finish(run)

        status = in_a_child(work)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        kills += 1
        finish(start(tmp_path, resume=True))
        assert outputs(tmp_path) == undisturbed, f"killed at call {number}"
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(("in.fasta", *NAMES)), number
        for name in NAMES:
            (tmp_path / name).unlink()
        number += step
    assert kills >= least


def test_a_run_killed_again_and_again_at_random_ends_with_the_same_bytes(
    tmp_path: Path, undisturbed: list[bytes]
) -> None:
    numbers = random.Random(0)
    kills = 0
    while True:

        def work(number: int) -> None:
            run = start(tmp_path, resume=True)
            die_at(number)
            finish(run)

        at = numbers.randrange(8, 60)
        status = in_a_child(lambda at=at: work(at))  # type: ignore[misc]
        if status == 0:
            break
        kills += 1
        if kills > 30:
            finish(start(tmp_path, resume=True))
            break
    assert kills > 5
    assert outputs(tmp_path) == undisturbed


@pytest.mark.parametrize("damage", ["cut", "zeros", "flipped", "empty", "gone", "folder", "rubbish"])
@pytest.mark.parametrize("victim", ["out.h5.partial", "r.h5.partial"])
def test_a_journal_that_was_damaged_is_computed_again(
    tmp_path: Path, undisturbed: list[bytes], victim: str, damage: str
) -> None:
    run = start(tmp_path)
    stop_after(run, 4)
    journal = tmp_path / victim / "journal"
    data = bytearray(journal.read_bytes())
    match damage:
        case "cut":
            del data[-100:]
        case "zeros":
            data[-300:] = bytes(300)
        case "flipped":
            data[len(data) // 2] ^= 4
        case "empty":
            data.clear()
        case "rubbish":
            data[:] = b"hello" * 100
    journal.write_bytes(data)
    if damage in ("gone", "folder"):
        journal.unlink()
    if damage == "folder":
        journal.parent.rmdir()
    finish(start(tmp_path, resume=True))
    assert outputs(tmp_path) == undisturbed


def stop_after(run: Run[Any], batches: int) -> None:
    """Stop a run after so many batches, as a signal does."""
    with pytest.raises(interrupts.Interrupted):
        for number, _ in enumerate(run.run(), start=1):
            if number == batches:
                interrupts._STATE.received = signal.SIGTERM
    interrupts.clear()


def test_a_run_that_is_stopped_keeps_what_is_done(tmp_path: Path, undisturbed: list[bytes]) -> None:
    run = start(tmp_path)
    stop_after(run, 4)
    done = scan(tmp_path / "out.h5.partial" / "journal").done
    assert 4 <= done < 12
    assert run.kept == f"{done} of 12 records are kept: resume the run to go on"
    backend = FakeBackend()
    again = finish(start(tmp_path, resume=True, backend=backend))
    assert again.failed == 1
    assert backend.batches < 9, "what was done is not computed again"
    assert outputs(tmp_path) == undisturbed


def test_a_run_that_did_nothing_leaves_nothing(tmp_path: Path, fasta: Path) -> None:
    class Broken(FakeBackend):
        def run(self, *_: Any) -> Any:
            raise OutputError("broken")

    with pytest.raises(OutputError, match="broken"):
        finish(start(tmp_path, backend=Broken()))
    assert [path.name for path in tmp_path.iterdir()] == ["in.fasta"]


def test_the_batches_of_the_first_run_are_those_of_the_next(tmp_path: Path, undisturbed: list[bytes]) -> None:
    """On a GPU the budget follows the memory that is free: what is resumed keeps that of its beginning."""
    stop_after(start(tmp_path), 3)
    finish(start(tmp_path, resume=True, backend=FakeBackend(budget=1000)))
    assert outputs(tmp_path) == undisturbed


def test_who_asks_for_smaller_batches_gets_them(tmp_path: Path, fasta: Path) -> None:
    """As after a run that had too little memory."""
    stop_after(start(tmp_path), 3)
    done = scan(tmp_path / "out.h5.partial" / "journal").done
    backend = FakeBackend()
    options = EmbedOptions(pool="mean", residues=True, long="skip", max_length=36, max_tokens=1)
    finish(prepare(fasta, tmp_path / "out.h5", tmp_path / "r.h5", options=options, resume=True, backend=backend))
    assert backend.batches == 12 - done - 1, "one record in each, and one failure"


def test_another_gpu_may_resume_and_another_arithmetic_may_not(tmp_path: Path, fasta: Path) -> None:
    def backend(description: str, computed_with: str) -> FakeBackend:
        made = FakeBackend()
        made.description, made.computed_with = description, computed_with
        return made

    stop_after(start(tmp_path, backend=backend("torch, cuda:0, bfloat16", "torch, cuda, bfloat16")), 3)
    with pytest.raises(OutputError, match="is from a run with other input, model or options"):
        finish(start(tmp_path, resume=True, backend=backend("torch, cpu, float32", "torch, cpu, float32")))
    finish(start(tmp_path, resume=True, backend=backend("torch, cuda:1, bfloat16", "torch, cuda, bfloat16")))


@pytest.mark.parametrize("change", ["options", "key", "store_dtype", "input", "shard"])
def test_resume_refuses_another_run(tmp_path: Path, fasta: Path, change: str) -> None:
    stop_after(start(tmp_path), 3)
    words: dict[str, Any] = {"resume": True}
    match change:
        case "key":
            words["key"] = "md5"
        case "store_dtype":
            words["store_dtype"] = "float32"
        case "input":
            fasta.write_text(fasta.read_text() + ">new\nMKT\n")
    run = start(tmp_path, **words)
    if change == "options":
        run = prepare(fasta, tmp_path / "out.h5", tmp_path / "r.h5", resume=True)
    if change == "shard":  # of another name; so it is another run, and begins
        finish(start(tmp_path, resume=True, shard=Shard(1, 2)))
        assert (tmp_path / "out.shard-1-of-2.h5").exists()
        return
    with pytest.raises(OutputError, match="is from a run with other input, model or options"):
        finish(run)


def test_an_unfinished_run_is_not_cleared_unasked(tmp_path: Path, fasta: Path) -> None:
    stop_after(start(tmp_path), 3)
    with pytest.raises(OutputError, match="left from a run that did not finish"):
        finish(start(tmp_path))
    finish(start(tmp_path, overwrite=True))
    assert not list(tmp_path.glob("*.partial"))


def test_a_stopped_run_that_may_overwrite_is_resumed_and_overwrites(tmp_path: Path, undisturbed: list[bytes]) -> None:
    (tmp_path / "out.h5").write_text("old")
    stop_after(start(tmp_path, overwrite=True), 3)
    assert (tmp_path / "out.h5").read_text() == "old"
    finish(start(tmp_path, resume=True))
    assert outputs(tmp_path) == undisturbed


def test_a_finished_run_has_nothing_to_do(tmp_path: Path, undisturbed: list[bytes]) -> None:
    finish(start(tmp_path))
    before = (tmp_path / "out.h5").stat().st_mtime_ns
    backend = FakeBackend()
    again = finish(start(tmp_path, resume=True, backend=backend))
    assert (again.failed, backend.batches) == (1, 0)
    assert (tmp_path / "out.h5").stat().st_mtime_ns == before
    with pytest.raises(OutputError, match=r"out\.h5 exists"):
        finish(start(tmp_path, resume=True, key="md5"))
    (tmp_path / "r.h5").unlink()
    finish(start(tmp_path, resume=True))
    assert outputs(tmp_path) == undisturbed


def change_input(path: Path, how: str) -> None:
    text = path.read_text()
    last = text.rindex(">")
    changed = {
        "appended": text + ">new\nMKTAY\n",
        "cut": text[:last],
        "emptied": "",
        "residues": text[:-3] + ("WW\n" if text[-3:] != "WW\n" else "AA\n"),
        "ids": text[:last] + text[last:].replace(">sp|", ">tr|"),
        "headers": text.replace("protein 11", "protein 12"),
    }
    path.write_text(changed[how])


@pytest.mark.parametrize("how", ["appended", "cut", "emptied", "residues", "ids", "headers"])
@pytest.mark.parametrize("last", [False, True])
def test_input_that_changes_under_a_run_ends_it(
    tmp_path: Path, undisturbed: list[bytes], fasta: Path, how: str, last: bool
) -> None:
    with pytest.raises(InputError):
        for number, progress in enumerate(start(tmp_path).run()):
            if progress.records == 12 if last else number == 1:
                change_input(fasta, how)
    assert not (tmp_path / "out.h5").exists()
    assert not (tmp_path / "r.h5").exists()


def test_input_that_is_only_touched_is_the_same(tmp_path: Path, undisturbed: list[bytes], fasta: Path) -> None:
    for number, _ in enumerate(start(tmp_path).run()):
        if number == 3:
            fasta.write_text(fasta.read_text())
    assert outputs(tmp_path) == undisturbed


def test_a_value_that_float16_cannot_hold_is_a_failure_with_advice(tmp_path: Path, fasta: Path) -> None:
    fasta.write_text(">a\nMKT\n>b\nMWT\n>c\nMK\n")
    run = finish(prepare(fasta, tmp_path / "out.h5", tmp_path / "r.h5", backend=FakeBackend(huge="W")))
    assert run.failed == 1
    assert failures_of(tmp_path / "out.h5").read_text() == (
        "id\treason\nb\tvalues over 65,504 do not fit into float16; store it as float32\n"
    )
    for name in ("out.h5", "r.h5"):
        with h5py.File(tmp_path / name) as file:
            assert list(file) == ["a", "c"]
            assert all(np.isfinite(file[key][()]).all() for key in file)
    more = {"backend": FakeBackend(huge="W"), "store_dtype": "float32"}
    assert finish(prepare(fasta, tmp_path / "out.h5", tmp_path / "r.h5", overwrite=True, **more)).failed == 0
    assert not failures_of(tmp_path / "out.h5").exists()


def test_repeated_records(tmp_path: Path) -> None:
    fasta = tmp_path / "in.fasta"
    fasta.write_text("".join(f">a one\nMKT{'A' * n}\n>b/c\nMKW{'A' * n}\n" for n in range(10)))
    with pytest.raises(InputError, match="has the same id"):
        prepare(fasta, tmp_path / "out.h5")
    run = prepare(fasta, tmp_path / "out.h5", duplicates="first")
    assert finish(run).left_out == 18
    with h5py.File(tmp_path / "out.h5") as file:
        assert list(file) == ["a", "b_c"]
        counted = [int(file.attrs[name]) for name in ("records", "failed_records", "left_out_records", "input_records")]
        assert counted == [2, 0, 18, 20]
    again = finish(prepare(fasta, tmp_path / "out.h5", duplicates="first", resume=True))
    assert again.left_out == 18
    stop_after(prepare(fasta, tmp_path / "s.h5", duplicates="suffix"), 1)
    finish(prepare(fasta, tmp_path / "s.h5", duplicates="suffix", resume=True))
    with h5py.File(tmp_path / "s.h5") as file:
        assert list(file)[:4] == ["a", "b_c", "a_2", "b_c_2"]
        assert file["a_2"].attrs["original_id"] == "a"
        assert len(file) == 20


def test_memory_that_is_gone_is_one_clear_error(tmp_path: Path, fasta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Journal.add

    def short(self: Journal, facts: Any, data: bytes = b"") -> None:
        if "key" in facts and facts["key"].startswith("sp|P007"):
            raise MemoryError
        real(self, facts, data)

    monkeypatch.setattr(Journal, "add", short)
    with pytest.raises(OutOfMemoryError, match="not enough memory") as caught:
        finish(start(tmp_path))
    assert "resume" in caught.value.hint
    assert scan(tmp_path / "out.h5.partial" / "journal").done > 0


def test_contacts_have_shards_and_resume(tmp_path: Path, fasta: Path) -> None:
    def contacts(**words: Any) -> Run[Any]:
        options = ContactOptions(out=tmp_path / "c.h5", max_length=36)
        return contact_run([str(fasta)], FakeBackend(), options, RunOptions(**words))

    assert finish(contacts()).failed == 1
    whole = (tmp_path / "c.h5").read_bytes()
    (tmp_path / "c.h5").unlink()
    stop_after(contacts(), 5)
    finish(contacts(resume=True))
    assert (tmp_path / "c.h5").read_bytes() == whole
    for number in (1, 2):
        finish(contacts(shard=Shard(number, 2)))
    parts = []
    for number in (1, 2):
        with h5py.File(tmp_path / f"c.shard-{number}-of-2.h5") as file:
            parts += list(file)
    with h5py.File(tmp_path / "c.h5") as file:
        assert list(file) == parts
    with pytest.raises(InputError, match="1 proteins have more than 36 residues"):
        contact_run([str(fasta)], FakeBackend(), ContactOptions(out=tmp_path / "d.h5", max_length=36, long="error"))


def test_shards_of_one_run_say_so(tmp_path: Path, fasta: Path) -> None:
    for number in (1, 2, 3):
        finish(start(tmp_path, shard=Shard(number, 3)))
    finish(start(tmp_path))
    found = []
    for name in [f"out.shard-{number}-of-3.h5" for number in (1, 2, 3)] + ["out.h5"]:
        with h5py.File(tmp_path / name) as file:
            found.append({key: file.attrs[key] for key in file.attrs})
    assert len({attributes["job_sha256"] for attributes in found}) == 1
    assert len({attributes["run_sha256"] for attributes in found}) == 4
    assert [attributes["shard"] for attributes in found] == ["1/3", "2/3", "3/3", "1/1"]
    ends = [int(a["first_record"] + a["records"] + a["failed_records"]) for a in found[:3]]
    assert ends == [int(found[1]["first_record"]), int(found[2]["first_record"]), 12]


@pytest.mark.parametrize("out", ["in.fasta", "link.h5", "hard.h5"])
def test_an_output_is_never_the_input(tmp_path: Path, fasta: Path, out: str) -> None:
    before = fasta.read_bytes()
    (tmp_path / "link.h5").symlink_to(fasta)
    os.link(fasta, tmp_path / "hard.h5")
    with pytest.raises((OutputError, UsageError)) as caught:
        prepare(fasta, tmp_path / out, overwrite=True)
    assert "is an input, too" in str(caught.value) or "the ending .fasta" in str(caught.value)
    with pytest.raises((OutputError, UsageError)):
        prepare(fasta, tmp_path / "x.h5", tmp_path / out, overwrite=True)
    assert fasta.read_bytes() == before


def test_an_output_is_never_the_model_nor_a_file_of_its_folder(tmp_path: Path, fasta: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights.h5").write_text("precious")
    for reads in (model, model / "weights.h5"):
        with pytest.raises(OutputError, match="is read by this run, too"):
            prepare(fasta, model / "weights.h5", overwrite=True, reads=(reads, "no such thing"))


def test_an_input_in_the_work_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out.h5.partial").mkdir()
    fasta = proteins(tmp_path / "out.h5.partial")
    with pytest.raises(OutputError, match="lies in the work folder"):
        prepare(fasta, tmp_path / "out.h5", overwrite=True)
