"""The look at the input before computing: keys, duplicates, shards."""

import hashlib

import numpy as np
import pytest

from protembed.errors import InputError, UsageError
from protembed.inference.run import parse_budget
from protembed.sequences.alphabet import PROTEMBED
from protembed.sequences.records import Record
from protembed.sequences.shard import Shard, parse_shard
from protembed.sequences.survey import DuplicatePolicy, KeyKind, Survey, assign_keys, key_of, survey


def look(records: list[Record], key: KeyKind = "id") -> Survey:
    return survey(lambda: records, alphabet=PROTEMBED, unknown="x", key=key)


def keys(records: list[Record], policy: DuplicatePolicy, kind: KeyKind = "id") -> list[str | None]:
    return [key for key, _ in assign_keys(records, look(records, kind), kind=kind, policy=policy)]


def named(*ids: str) -> list[Record]:
    return [Record(name, "MK" + "A" * number) for number, name in enumerate(ids)]


def test_counts() -> None:
    found = look([Record("a", "MKJ", gaps=2), Record("b", "JJ")])
    assert (found.records, found.residues, found.unknown, found.gaps) == (2, 5, 3, 2)
    assert found.lengths.tolist() == [3, 2]


def test_digest_tells_inputs_apart() -> None:
    assert look(named("a", "b")).digest == look(named("a", "b")).digest
    assert look(named("a", "b")).digest != look(named("b", "a")).digest


def test_keys_of_other_tools() -> None:
    record = Record("a/b", "MKTA")
    assert key_of(record, "id") == "a_b"
    assert key_of(record, "md5") == hashlib.md5(b"MKTA").hexdigest()
    assert key_of(record, "biotrainer") == hashlib.sha256(b"MKTA_4").hexdigest()
    assert key_of(Record(".", "MK"), "id") == "_"


def test_duplicates_are_refused_by_name() -> None:
    records = [
        Record("a", "MK", place="x.fasta, line 1"),
        Record("b", "MK"),
        Record("a", "MA", place="x.fasta, line 5"),
    ]
    with pytest.raises(InputError, match=r"x\.fasta, line 5: record 'a' .* x\.fasta, line 1: record 'a'"):
        keys(records, "error")


def test_ids_that_collide_as_keys_are_refused() -> None:
    with pytest.raises(InputError, match="same id"):
        keys(named("a/b", "a_b"), "error")


def test_suffix_never_takes_a_name_that_is_there() -> None:
    assert keys(named("a", "a", "a_2", "a", "b"), "suffix") == ["a", "a_3", "a_2", "a_4", "b"]


def test_first_marks_later_ones() -> None:
    assert keys(named("a", "b", "a"), "first") == ["a", "b", None]


def test_equal_sequences_share_an_md5_key() -> None:
    records = [Record("a", "MK"), Record("b", "MK")]
    with pytest.raises(InputError, match="same sequence"):
        keys(records, "error", "md5")
    assert keys(records, "error", "id") == ["a", "b"]


def test_unknown_letters_can_be_refused() -> None:
    with pytest.raises(InputError, match="'a' has the letter J"):
        survey(lambda: [Record("a", "MKJ")], alphabet=PROTEMBED, unknown="error", key="id")


def test_no_records() -> None:
    with pytest.raises(InputError, match="no records"):
        look([])


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_shards_have_every_record_once_and_balance_residues(count: int) -> None:
    lengths = np.random.default_rng(0).integers(30, 2000, 300).astype(np.int32)
    ranges = [Shard(number, count).range(lengths) for number in range(1, count + 1)]
    assert [index for part in ranges for index in part] == list(range(300))
    sums = [int(lengths[part.start : part.stop].sum()) for part in ranges]
    assert max(sums) - min(sums) <= 2 * lengths.max()


def test_more_shards_than_records() -> None:
    lengths = np.array([5, 5], dtype=np.int32)
    ranges = [Shard(number, 5).range(lengths) for number in range(1, 6)]
    assert [index for part in ranges for index in part] == [0, 1]


def test_shard_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_shard("2/8") == Shard(2, 8)
    for wrong in ("9/8", "0/8", "a/8", "8", "-1/8"):
        with pytest.raises(UsageError):
            parse_shard(wrong)
    with pytest.raises(UsageError, match="not in a SLURM job array"):
        parse_shard("slurm")
    for name, value in {"ID": "12", "MIN": "10", "COUNT": "4"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    assert parse_shard("slurm") == Shard(3, 4)


def test_budget_words() -> None:
    assert parse_budget("auto") is None
    assert parse_budget("512") == 512
    for wrong in ("0", "-1", "many"):
        with pytest.raises(UsageError):
            parse_budget(wrong)


@pytest.mark.parametrize("kind", ["md5", "biotrainer"])
@pytest.mark.parametrize("policy", ["error", "suffix", "first"])
def test_empty_records_do_not_share_a_key(kind: KeyKind, policy: DuplicatePolicy) -> None:
    records = [Record("a", ""), Record("b", "MK"), Record("c", "")]
    assert look(records, kind).repeated == frozenset()
    assert None not in keys(records, policy, kind)
    assert len(keys(records, policy, kind)) == 3


def test_empty_records_of_one_id_are_duplicates() -> None:
    with pytest.raises(InputError, match="same id"):
        keys([Record("a", ""), Record("a", "MK")], "error")
