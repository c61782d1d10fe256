"""Runs of predict: text and HDF5 are resumed, divided and named alike; text goes where it is sent."""

import json
import os
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from protembed import interrupts
from protembed.errors import OutputError, UsageError
from protembed.inference.predict import PredictOptions
from protembed.inference.predict_run import PredictionOutput, predict_run
from protembed.inference.run import Run, RunOptions
from protembed.models.head_config import HeadCard, HeadConfig
from protembed.outputs.journal import scan
from protembed.outputs.target import failures_of, run_file_of
from protembed.sequences.batching import TokenBatch
from protembed.sequences.shard import Shard
from tests.inference.fakes import FakeBackend, finish, proteins
from tests.inference.test_run import in_a_child, stop_after

FORMATS = ("tsv", "jsonl", "fasta", "h5")


class FakePredictor(FakeBackend):
    """Has a head of residues, ss3, and one of proteins, place, which has these labels."""

    def __init__(self, labels: tuple[str, ...] = ("in", "out", "both"), **words: Any) -> None:
        super().__init__(**words)
        shape = {"d_input": 8, "layers": (1,)}
        own = {"encoder": "fake", "encoder_sha256": self.card.sha256, "sha256": "1" * 64}
        residues = HeadConfig(kind="residue_classes", outputs=3, **shape)  # type: ignore[arg-type]
        protein = HeadConfig(kind="sequence_class", outputs=3, **shape)  # type: ignore[arg-type]
        self.included = {
            "ss3": HeadCard(task="ss3", config=residues, labels=("H", "E", "C"), **own),  # type: ignore[arg-type]
            "place": HeadCard(task="place", config=protein, labels=labels, **own),  # type: ignore[arg-type]
        }

    def attach(self, path: Path) -> HeadCard:
        raise NotImplementedError

    def predict(self, batch: TokenBatch, tasks: Collection[str]) -> Mapping[str, list[npt.NDArray[np.float32]]]:
        rows = self.run(batch, [("residues", 1)])["residues", 1][:, :3]
        parts = [part[1:-1] for part in np.split(rows % 3, np.cumsum(batch.lengths)[:-1])]
        return {task: parts if task == "ss3" else [part.mean(axis=0) for part in parts] for task in tasks}


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    return proteins(tmp_path)


@pytest.fixture(autouse=True)
def _no_signal() -> Iterator[None]:
    interrupts.clear()
    yield
    interrupts.clear()


def start(fasta: Path, out: Path | str, *, tasks: str = "ss3", form: Any = None, **words: Any) -> Run[Any]:
    backend = words.pop("backend", None) or FakePredictor()
    output = PredictionOutput(tasks=tuple(tasks.split(",")), out=Path(out), format=form, plots=words.pop("plots", None))
    options = PredictOptions(long="skip", max_length=36, max_tokens=words.pop("max_tokens", None))
    return predict_run([str(fasta)], backend, options, output, RunOptions(**words))


@pytest.mark.parametrize("form", FORMATS)
def test_a_stopped_run_is_resumed_to_the_same_bytes(tmp_path: Path, fasta: Path, form: str) -> None:
    out = tmp_path / f"out.{form}"
    assert finish(start(fasta, out)).failed == 1
    whole, failed = out.read_bytes(), failures_of(out).read_bytes()
    for path in (out, failures_of(out)):
        path.unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["in.fasta"]
    stop_after(start(fasta, out), 3)
    assert not out.exists()
    with pytest.raises(OutputError, match="did not finish"):
        finish(start(fasta, out))
    backend = FakePredictor()
    finish(start(fasta, out, resume=True, backend=backend))
    assert (out.read_bytes(), failures_of(out).read_bytes()) == (whole, failed)
    assert 0 < backend.batches < 6
    again = finish(start(fasta, out, resume=True, backend=backend))
    assert (again.failed, out.read_bytes()) == (1, whole)
    assert backend.batches < 6, "a finished run has nothing to do"
    with pytest.raises(OutputError, match="exists"):
        finish(start(fasta, out, resume=True, key="md5"))


@pytest.mark.parametrize("form", ["tsv", "jsonl", "fasta"])
def test_text_that_was_changed_is_not_taken_for_finished(tmp_path: Path, fasta: Path, form: str) -> None:
    out = tmp_path / f"out.{form}"
    finish(start(fasta, out, resume=True))
    out.write_bytes(out.read_bytes()[:-5])
    with pytest.raises(OutputError, match="exists"):
        finish(start(fasta, out, resume=True))


def test_text_of_shards_says_what_it_is_part_of(tmp_path: Path, fasta: Path) -> None:
    finish(start(fasta, tmp_path / "out.tsv", max_tokens=1))
    assert not run_file_of(tmp_path / "out.tsv").exists()
    parts, facts = [], []
    for number in (1, 2):
        finish(start(fasta, tmp_path / "out.tsv", shard=Shard(number, 2), max_tokens=1))
        part = tmp_path / f"out.shard-{number}-of-2.tsv"
        parts.append(part.read_text().split("\n", 1)[1])
        facts.append(json.loads(run_file_of(part).read_text()))
        assert facts[-1]["bytes"] == part.stat().st_size
    assert (tmp_path / "out.tsv").read_text().split("\n", 1)[1] == "".join(parts)
    assert facts[0]["job_sha256"] == facts[1]["job_sha256"]
    assert [fact["shard"] for fact in facts] == ["1/2", "2/2"]
    assert sum(fact["records"] + fact["failed_records"] for fact in facts) == 12


def test_repeated_records_have_names_of_their_own(tmp_path: Path) -> None:
    fasta = tmp_path / "in.fasta"
    fasta.write_text(">a/b\nMKT\n>c\nMK\n>a/b\nMKW\n")
    finish(start(fasta, tmp_path / "out.tsv", tasks="place", duplicates="suffix"))
    assert ids(tmp_path / "out.tsv") == ["a/b", "c", "a/b_2"]
    finish(start(fasta, tmp_path / "first.tsv", tasks="place", duplicates="first"))
    assert ids(tmp_path / "first.tsv") == ["a/b", "c"]
    finish(start(fasta, tmp_path / "md5.tsv", tasks="place", key="md5"))
    assert [len(name) for name in ids(tmp_path / "md5.tsv")] == [32] * 3


def ids(path: Path) -> list[str]:
    return [line.split("\t")[0] for line in path.read_text().splitlines()[1:]]


@pytest.mark.parametrize("form", ["tsv", "jsonl"])
def test_labels_cannot_add_rows(tmp_path: Path, form: str) -> None:
    fasta = tmp_path / "in.fasta"
    fasta.write_text(">a\nMKT\n")
    labels = ("x\nfalse\tss3\t1", "y\u2028\x1b[31m", "z\r\n\ud800")
    out = tmp_path / f"out.{form}"
    for first in range(3):
        backend = FakePredictor(labels=labels[first:] + labels[:first])
        finish(start(fasta, out, tasks="place", backend=backend, overwrite=True))
        text = out.read_bytes().decode()
        assert len(text.splitlines()) == {"tsv": 2, "jsonl": 1}[form]
        assert text.count("\t") == {"tsv": 12, "jsonl": 0}[form]


def test_hostile_cards_do_not_end_a_run_at_its_end(tmp_path: Path, fasta: Path) -> None:
    labels = ("a\0b", "\ud800", "c")
    finish(start(fasta, tmp_path / "out.h5", tasks="place", backend=FakePredictor(labels=labels)))
    with h5py.File(tmp_path / "out.h5") as file:
        assert file.attrs["labels"] == "a\\0b\t\\ud800\tc"


def test_several_tasks_have_lists_of_failures_of_their_own(tmp_path: Path, fasta: Path) -> None:
    """The list of another output, `embed -o out.h5`, has the name that the tasks together would have."""
    (tmp_path / "out.failed.tsv").write_text("id\treason\nprecious\tx\n")
    finish(start(fasta, tmp_path / "out.h5", tasks="ss3,place"))
    assert (tmp_path / "out.failed.tsv").read_text() == "id\treason\nprecious\tx\n"
    for task in ("ss3", "place"):
        assert "sp|P010|X" in failures_of(tmp_path / f"out.{task}.h5").read_text()


@pytest.mark.parametrize(
    ("name", "form"),
    [("x.h5", "tsv"), ("x.tsv", "h5"), ("x.csv", None), ("x.csv", "tsv"), ("x.jsonl", "fasta"), ("x.tsv.gz", None)],
)
def test_names_that_contradict_the_format_are_refused(tmp_path: Path, fasta: Path, name: str, form: str | None) -> None:
    with pytest.raises(UsageError, match="the ending"):
        start(fasta, tmp_path / name, form=form)


@pytest.mark.parametrize("name", ["x", "x.out", "x.txt", "x.TSV", "a.b/x"])
def test_names_that_say_nothing_or_the_right_thing_are_taken(tmp_path: Path, fasta: Path, name: str) -> None:
    (tmp_path / "a.b").mkdir()
    finish(start(fasta, tmp_path / name))
    assert (tmp_path / name).read_text().startswith("id\ttask")


def test_a_stream_cannot_be_resumed_or_divided(fasta: Path) -> None:
    for words in ({"resume": True}, {"shard": Shard(1, 2)}):
        with pytest.raises(UsageError, match="-: cannot be resumed, nor be a shard"):
            start(fasta, "-", **words)
    with pytest.raises(UsageError, match="HDF5 cannot go to standard output"):
        start(fasta, "-", form="h5")


def test_standard_output_gets_the_bytes_of_a_file(
    tmp_path: Path, fasta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(start(fasta, tmp_path / "out.tsv"))
    for name in ("-", "/dev/stdout"):
        with pytest.warns(UserWarning, match=r"record 'sp\|P010\|X' has no result: 37 residues"):
            assert finish(start(fasta, name)).failed == 1
        assert capsys.readouterr().out == (tmp_path / "out.tsv").read_text()


def test_a_named_pipe_is_written_to_and_stays_one(tmp_path: Path, fasta: Path) -> None:
    finish(start(fasta, tmp_path / "out.tsv"))
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    with pytest.warns(UserWarning, match="has no result"):
        finish(start(fasta, tmp_path / "pipe", overwrite=True))
    reader.join()
    assert read == [(tmp_path / "out.tsv").read_text()]
    assert (tmp_path / "pipe").is_fifo()
    with pytest.raises(UsageError, match="HDF5"):
        start(fasta, tmp_path / "pipe", form="h5")


@pytest.mark.filterwarnings("ignore:.*has no result")
def test_a_device_is_written_to_and_stays_one(tmp_path: Path, fasta: Path) -> None:
    finish(start(fasta, "/dev/null", overwrite=True))
    assert Path("/dev/null").is_char_device()
    (tmp_path / "link.tsv").symlink_to("/dev/null")
    finish(start(fasta, tmp_path / "link.tsv", overwrite=True))
    assert (tmp_path / "link.tsv").is_symlink()
    with pytest.raises(OutputError, match="/dev/full: cannot be written \\(No space left"):
        finish(start(fasta, "/dev/full"))


@pytest.mark.filterwarnings("ignore:.*has no result")
def test_a_stream_that_is_stopped_has_kept_nothing(fasta: Path) -> None:
    run = start(fasta, "/dev/null")
    stop_after(run, 3)
    assert run.kept == ""


def test_a_folder_is_no_output(tmp_path: Path, fasta: Path) -> None:
    for name in (tmp_path, tmp_path / "x.tsv"):
        (tmp_path / "x.tsv").mkdir(exist_ok=True)
        with pytest.raises(OutputError, match="is a folder"):
            finish(start(fasta, name, overwrite=True))


def test_text_runs_killed_in_the_end_are_resumed(tmp_path: Path, fasta: Path) -> None:
    out = tmp_path / "out.tsv"
    finish(start(fasta, out))
    whole = out.read_bytes()
    for name in ("give_name", "write_failures", "sync"):
        for path in (out, failures_of(out)):
            path.unlink()

        def work(name: str = name) -> None:
            from protembed.outputs import file_writer

            run = start(fasta, out)
            real = getattr(file_writer, name)

            def dying(*words: Any, **named: Any) -> None:
                if scan(tmp_path / "out.tsv.partial" / "journal").done == 12:
                    if name == "give_name":
                        real(*words, **named)
                    os._exit(9)
                real(*words, **named)

            setattr(file_writer, name, dying)
            finish(run)

        assert in_a_child(work) == 9
        finish(start(fasta, out, resume=True))
        assert out.read_bytes() == whole
        run_file_of(out).unlink()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.fasta", "out.tsv", "out.tsv.failed.tsv"]
