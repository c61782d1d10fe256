"""Shards: the same slice whatever else is submitted, and a refusal where that cannot be known."""

from pathlib import Path

import numpy as np
import pytest

from protembed.errors import UsageError
from protembed.sequences.shard import Shard, parse_shard


def submit(monkeypatch: pytest.MonkeyPatch, task: int, array: str) -> None:
    """Set what SLURM sets for one task of `sbatch --array=ARRAY` (1-8, 3,6, 1-8:2)."""
    step = 1
    if "-" in array:
        bounds, _, step_text = array.partition(":")
        first, last = map(int, bounds.split("-"))
        step = int(step_text or 1)
        tasks = list(range(first, last + 1, step))
    else:
        tasks = [int(number) for number in array.split(",")]
    assert task in tasks
    values = {"ID": task, "MIN": min(tasks), "MAX": max(tasks), "COUNT": len(tasks), "STEP": step}
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))


@pytest.mark.parametrize(
    ("task", "array"), [(3, "1-8"), (3, "3"), (3, "3,6"), (6, "3,6"), (3, "1-8:2"), (8, "8"), (1, "1"), (3, "3-4")]
)
def test_a_task_submitted_again_is_the_same_shard(monkeypatch: pytest.MonkeyPatch, task: int, array: str) -> None:
    submit(monkeypatch, task, array)
    assert parse_shard("slurm/8") == Shard(task, 8)


@pytest.mark.parametrize(
    ("task", "array", "message"),
    [(0, "0-7", "count from 0"), (3, "0-7", "count from 0"), (0, "0", "count from 0"), (9, "1-16", "a task 16")],
)
def test_an_array_that_is_not_1_to_n_is_refused_by_every_task(
    monkeypatch: pytest.MonkeyPatch, task: int, array: str, message: str
) -> None:
    submit(monkeypatch, task, array)
    with pytest.raises(UsageError, match=message) as caught:
        parse_shard("slurm/8")
    assert "--array=1-8" in caught.value.hint


@pytest.mark.parametrize(
    ("task", "array", "shard"), [(1, "1-8", Shard(1, 8)), (0, "0-7", Shard(1, 8)), (12, "10-13", Shard(3, 4))]
)
def test_slurm_alone_takes_a_whole_array(monkeypatch: pytest.MonkeyPatch, task: int, array: str, shard: Shard) -> None:
    submit(monkeypatch, task, array)
    assert parse_shard("slurm") == shard


@pytest.mark.parametrize(("task", "array"), [(3, "3"), (3, "3,6"), (6, "3,6"), (1, "1-8:2"), (1, "1"), (2, "1,2,4")])
def test_slurm_alone_refuses_some_tasks_of_an_array(monkeypatch: pytest.MonkeyPatch, task: int, array: str) -> None:
    submit(monkeypatch, task, array)
    with pytest.raises(UsageError, match="no whole array") as caught:
        parse_shard("slurm")
    assert "--shard slurm/8" in caught.value.hint


@pytest.mark.parametrize("text", ["slurm", "slurm/2", "slurm/9"])
def test_another_division_of_the_same_output_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    submit(monkeypatch, 1, "1-2")
    assert parse_shard(text, tmp_path / "out.h5").number == 1
    (tmp_path / "out.shard-4-of-8.h5").touch()
    with pytest.raises(UsageError, match=r"out\.shard-4-of-8\.h5 is one of 8") as caught:
        parse_shard(text, tmp_path / "out.h5")
    assert "slurm/8" in caught.value.hint
    assert parse_shard("slurm/8", tmp_path / "out.h5") == Shard(1, 8)
    assert parse_shard(text, tmp_path / "other.h5").number == 1
    assert parse_shard(text, tmp_path / "gone" / "out.h5").number == 1


@pytest.mark.parametrize("text", ["slurm/", "slurm/0", "slurm/-8", "slurm/x", "slurm/8/2", "slurm8", "²/8", "1/", "/8"])
def test_words_that_are_no_shard(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    submit(monkeypatch, 1, "1-8")
    with pytest.raises(UsageError):
        parse_shard(text)
    with pytest.raises(UsageError):
        parse_shard("1/" + "9" * 5000)


@pytest.mark.parametrize("name", ["ID", "MIN", "COUNT"])
@pytest.mark.parametrize("value", ["", "x", "²", "-1"])
def test_an_environment_that_is_not_slurms(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    submit(monkeypatch, 1, "1-8")
    monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    with pytest.raises(UsageError, match="not in a SLURM job array"):
        parse_shard("slurm")


def test_empty_records_are_in_one_shard_each() -> None:
    for lengths in ([0, 0, 5, 0, 3, 0], [0, 0, 0], [4, 0]):
        array = np.array(lengths, dtype=np.int32)
        parts = [Shard(number, 3).range(array) for number in (1, 2, 3)]
        assert [index for part in parts for index in part] == list(range(len(lengths)))


def test_a_large_count_takes_no_memory() -> None:
    assert list(Shard(1, 999_999_999).range(np.array([5, 5], dtype=np.int32))) == []
