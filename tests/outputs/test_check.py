"""`check` says that an output is right only if every record is, and names the first that is not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from protembed.errors import InputError, OutputError, ProtembedError, UsageError
from protembed.outputs.check import Told, check_output
from protembed.outputs.safe_hdf5 import SafeFile
from protembed.sequences.records import read_fasta
from protembed.sequences.shard import Shard
from tests.outputs.made import (
    WIDTH,
    Change,
    changed,
    replace_values,
    values_of,
    write_old_output,
    write_output,
    write_proteins,
)

CONTENTS = [
    *("per-protein", "per-residue", "contacts", "residue_classes", "residue_flags"),
    *("residue_values", "sequence_class", "sequence_value"),
]


@pytest.fixture
def proteins(tmp_path: Path) -> Path:
    return write_proteins(tmp_path / "proteins.fasta")


@pytest.fixture
def output(tmp_path: Path, proteins: Path) -> Path:
    return write_output(tmp_path / "out.h5", proteins)


@pytest.mark.parametrize("content", CONTENTS)
def test_what_any_command_writes_passes(tmp_path: Path, proteins: Path, content: str) -> None:
    out = write_output(tmp_path / "out.h5", proteins, content=content)
    found = check_output(out, [str(proteins)])
    assert (found.records, found.failed, found.left_out) == (6, 0, 0)
    assert found.lines() == ["6 records, complete, of tiny"]


def test_records_without_a_result_are_accounted_for_by_the_list_beside_the_file(tmp_path: Path, proteins: Path) -> None:
    out = write_output(tmp_path / "out.h5", proteins, failed=["P0", "P3"])
    found = check_output(out, [str(proteins)])
    assert (found.records, found.failed) == (4, 2)


def test_a_record_that_is_neither_in_the_file_nor_in_its_list_is_named(tmp_path: Path, proteins: Path) -> None:
    out = write_output(tmp_path / "out.h5", proteins, failed=["P0", "P3"])
    out.with_suffix(".failed.tsv").write_text("id\treason\nP0\ttoo long\n")
    with pytest.raises(OutputError, match=r"line 7: record 'P3' is missing") as caught:
        check_output(out, [str(proteins)])
    assert "out.failed.tsv" in caught.value.hint


def test_a_list_that_is_not_there_is_named(tmp_path: Path, proteins: Path) -> None:
    out = write_output(tmp_path / "out.h5", proteins, failed=["P0"])
    out.with_suffix(".failed.tsv").unlink()
    with pytest.raises(OutputError, match="record 'P0' is missing") as caught:
        check_output(out, [str(proteins)])
    assert "lists 1 records without a result, is not there" in caught.value.hint


def test_a_list_with_a_record_that_has_a_result_is_refused(tmp_path: Path, proteins: Path) -> None:
    out = write_output(tmp_path / "out.h5", proteins)
    out.with_suffix(".failed.tsv").write_text("id\treason\nP3\ttoo long\n")
    with pytest.raises(OutputError, match="names P3, which is no record without a result"):
        check_output(out, [str(proteins)])


@pytest.mark.parametrize("policy", ["suffix", "first"])
def test_repeated_records_are_known_from_the_file_itself(tmp_path: Path, policy: str) -> None:
    fasta = tmp_path / "twice.fasta"
    fasta.write_text(">A first\nMKT\n>B\nMKTA\n>A second\nMKTAY\n>a/b\nMK\n>a_b\nMKTAYIA\n")
    keys = ["A", "B", "A_2", "a_b", "a_b_2"] if policy == "suffix" else ["A", "B", None, "a_b", None]
    out = write_output(tmp_path / "out.h5", fasta, keys=keys, duplicates=policy)
    found = check_output(out, [str(fasta)])
    assert (found.records, found.left_out) == ((5, 0) if policy == "suffix" else (3, 2))


@pytest.mark.parametrize("key", ["md5", "biotrainer"])
def test_keys_are_known_from_the_file_itself(tmp_path: Path, proteins: Path, key: str) -> None:
    assert check_output(write_output(tmp_path / "out.h5", proteins, key=key), [str(proteins)]).records == 6


@pytest.mark.parametrize("shard", ["1/3", "2/3", "3/3"])
def test_a_shard_is_checked_against_its_part_of_the_input(tmp_path: Path, proteins: Path, shard: str) -> None:
    number = shard[0]
    out = write_output(tmp_path / f"out.shard-{number}-of-3.h5", proteins, shard=shard)
    lengths = np.array([len(record.sequence) for record in read_fasta([proteins])], np.int32)
    assert check_output(out, [str(proteins)]).records == len(Shard(int(number), 3).range(lengths))


def test_a_shard_under_the_name_of_another_is_refused(tmp_path: Path, proteins: Path) -> None:
    out = write_output(tmp_path / "out.shard-1-of-3.h5", proteins, shard="2/3")
    with pytest.raises(OutputError, match="is named shard 1 of 3, and holds shard 2 of 3"):
        check_output(out, [str(proteins)])


def test_a_truncated_protein_has_as_many_rows_as_the_limit(tmp_path: Path, proteins: Path) -> None:
    def cut(record: Any) -> Any:
        return values_of(record, "per-residue")[:4]

    said = {"content": "per-residue", "long_policy": "truncate", "long_proteins": "truncate"}
    out = write_output(tmp_path / "out.h5", proteins, values=cut, residue_limit=4, **said)
    assert check_output(out, [str(proteins)]).records == 6
    wrong = write_output(tmp_path / "wrong.h5", proteins, values=cut, residue_limit=5, **said)
    with pytest.raises(OutputError, match="has 4 rows for"):
        check_output(wrong, [str(proteins)])


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (Told(key="md5"), "written with key id, not md5"),
        (Told(duplicates="first"), "written with duplicates error, not first"),
        (Told(shard=Shard(1, 2)), "is shard 1 of 1, not 1 of 2"),
    ],
)
def test_an_option_that_contradicts_the_file_is_an_error(
    output: Path, proteins: Path, told: Told, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check_output(output, [str(proteins)], told)


def dump(path: Path) -> dict[str, Any]:
    """Return all that a reader takes from a file."""
    with SafeFile(path) as file:
        names = ("original_id", "description", "length", "crc32")
        found = {d.name: (d.read().tobytes(), d.dtype.str, [d.attribute(n) for n in names]) for d in file.datasets()}
        return {"attributes": file.attributes, "order": list(file), **found}


@pytest.mark.parametrize("content", ["per-protein", "per-residue", "residue_classes"])
def test_every_flipped_bit_of_a_value_is_noticed(tmp_path: Path, proteins: Path, content: str) -> None:
    out = write_output(tmp_path / "out.h5", proteins, content=content)
    with h5py.File(out) as file:
        places = [(file[key].id.get_offset(), file[key].id.get_storage_size()) for key in file]
    random = np.random.default_rng(0)
    for number in range(40):
        data = bytearray(out.read_bytes())
        start, size = places[number % len(places)]
        data[start + int(random.integers(size))] ^= 1 << int(random.integers(8))
        flipped = tmp_path / "flipped.h5"
        flipped.write_bytes(data)
        with pytest.raises(OutputError, match=rf"record 'P{number % 6}' is not what was written"):
            check_output(flipped, [str(proteins)])


def test_a_flipped_bit_anywhere_is_noticed_or_changes_nothing(tmp_path: Path, proteins: Path, output: Path) -> None:
    whole, right = output.read_bytes(), dump(output)
    random = np.random.default_rng(1)
    flipped, noticed = tmp_path / "out.h5", 0
    for _ in range(300):
        data = bytearray(whole)
        data[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))
        flipped.write_bytes(data)
        try:
            check_output(flipped, [str(proteins)])
        except ProtembedError:
            noticed += 1
        else:
            assert dump(flipped) == right
    assert noticed > 50


def values(data: Any, *, checksum: bool = True) -> Change:
    return lambda file: replace_values(file, "P2", data, checksum=checksum)


def swap(file: h5py.File) -> None:
    one, other = ((file[key][()], dict(file[key].attrs)) for key in ("P2", "P4"))
    for key, (data, attributes) in (("P2", other), ("P4", one)):
        file[key][...] = data
        file[key].attrs.update(attributes)


def move_to_the_end(file: h5py.File) -> None:
    file.move("P2", "other")
    file.move("other", "P2")


def copy_of_another(file: h5py.File) -> None:
    file["P2"][...] = file["P4"][()]
    file["P2"].attrs["crc32"] = file["P4"].attrs["crc32"]


def say(name: str, value: Any) -> Change:
    return lambda file: file.attrs.__setitem__(name, value)


def say_of_p2(name: str, value: Any) -> Change:
    return lambda file: file["P2"].attrs.__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (values(np.zeros(WIDTH, "f4"), checksum=False), "'P2' is not what was written"),
        (values(np.zeros(WIDTH, "f4")), "'P2' is zero throughout"),
        (values(np.full(WIDTH, np.nan, "f4")), "'P2' has values that are not finite"),
        (values(np.full(WIDTH, np.inf, "f4")), "'P2' has values that are not finite"),
        (values(np.ones(WIDTH // 2, "f4")), "'P2' has 4 values, the records before it 8"),
        (values(np.ones((1, WIDTH), "f4")), r"'P2' has the shape \(1, 8\)"),
        (values(np.ones(WIDTH, "f2")), "'P2' is stored as float16, the file says float32"),
        (values(np.ones(WIDTH, "i4")), "P2 does not hold numbers of float16, float32 or float64"),
        (values(np.array([b"text"] * WIDTH)), "P2 does not hold numbers"),
        (values(np.ones(WIDTH, "f4")), "as a whole are not those that were written"),
        (copy_of_another, "as a whole are not those that were written"),
        (swap, "'P2': original_id is 'P4' in the file, 'P2' in the input"),
        (lambda file: file.__delitem__("P2"), "record 'P2' is missing"),
        (lambda file: file.__delitem__("P5"), "record 'P5' is missing"),
        (lambda file: file.copy("P2", "P9"), "holds P9, which the input has not"),
        (move_to_the_end, "'P2': P3 stands in its place"),
        (lambda file: file["P2"].attrs.__delitem__("crc32"), "'P2' has no checksum"),
        (say_of_p2("length", 99), "'P2': length is '99' in the file"),
        (say_of_p2("description", "P2 another"), "'P2': description is 'P2 another' in the file"),
        (say("complete", False), "is not complete"),
        (lambda file: file.attrs.update(records=5, failed_records=1), "says 5 records, has 6"),
        (say("failed_records", 1), "accounts for the records 1 to 7"),
        (say("shard", "2/2"), "accounts for the records 1 to 6 of its input; shard 2 of 2 has"),
        (say("content", "anything"), "holds 'anything', which this version does not know"),
        (say("content", "per-residue"), "has the shape"),
        (say("key", "md5"), "is missing"),
        (say("key", "sha1"), "key is 'sha1', not one of"),
        (say("shard", "5/3"), "shard '5/3' does not exist"),
        (say("shard", "1/" + "9" * 5000), "does not exist"),
        (say("records", -1), "records is -1, not a count"),
        (say("first_record", np.uint64(2**64 - 1)), "first_record is 18446744073709551615, not a count"),
        (say("records", "six"), "records is 'six', not a count"),
        (say("options", "[" * 100_000), "options are not a JSON object"),
        (say("format_version", 3), "has format 3, this version knows 2"),
        (say("weights_sha256", "none"), "weights_sha256 is not a digest"),
        (lambda file: file.attrs.__delitem__("input_digest"), "does not say its input_digest"),
    ],
)  # fmt: skip
def test_what_is_not_as_it_was_written_is_named(output: Path, proteins: Path, change: Change, message: str) -> None:
    def change_and_say_dtype(file: h5py.File) -> None:
        file.attrs["dtype"] = "float32"
        change(file)

    with pytest.raises(ProtembedError, match=message):
        check_output(changed(output, change_and_say_dtype), [str(proteins)])


@pytest.mark.parametrize("name", ["model_name", "weights_sha256", "layer", "computed_with", "tool_version"])
def test_a_file_whose_own_description_was_changed_is_refused(output: Path, proteins: Path, name: str) -> None:
    with pytest.raises(OutputError, match="what the file says of itself was changed"):
        check_output(changed(output, say(name, "2" * 64), sealed=False), [str(proteins)])


@pytest.mark.parametrize(
    ("content", "wrong", "message"),
    [
        ("per-residue", lambda rows: rows * (np.arange(len(rows)) != 1)[:, None], "has rows of zeros"),
        ("residue_classes", lambda rows: rows * 0.5, "do not add up to 1"),
        ("residue_flags", lambda rows: rows + 1, "outside 0 to 1"),
        ("contacts", lambda rows: -rows, "outside 0 to 1"),
        ("contacts", lambda rows: rows * 0, "is zero throughout"),
        ("sequence_class", lambda row: row * 0, "do not add up to 1"),
    ],
)
def test_values_that_no_model_computes_are_named(
    tmp_path: Path, proteins: Path, content: str, wrong: Callable[[Any], Any], message: str
) -> None:
    def compute(record: Any) -> Any:
        right = values_of(record, content)
        return wrong(right).astype(right.dtype) if record.id == "P3" else right

    out = write_output(tmp_path / "out.h5", proteins, content=content, values=compute)
    with pytest.raises(OutputError, match=f"'P3' .*{message}"):
        check_output(out, [str(proteins)])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text + ">new\nMKT\n", "record 'new' is missing"),
        (lambda text: text[text.index(">P1") :], "record 'P1': P0 stands in its place"),
        (lambda text: text[: text.index(">P5")], "holds P5, which the input has not"),
        (lambda text: text.replace(">P3", ">P33"), "record 'P33' is missing"),
        (lambda text: text.replace("protein 3", "protein three"), "'P3': description is 'P3 protein 3'"),
        (lambda text: text + "A\n", "'P5': length is"),
        (lambda text: text[:-2] + "W\n", "was made from another input"),
        (lambda text: text[text.index(">P3") :] + text[: text.index(">P3")], "'P3': P0 stands in its place"),
    ],
)
def test_another_input_is_refused_by_the_first_record_that_differs(
    output: Path, proteins: Path, edit: Callable[[str], str], message: str
) -> None:
    proteins.write_text(edit(proteins.read_text()))
    with pytest.raises(OutputError, match=message):
        check_output(output, [str(proteins)])


def test_files_of_older_versions_are_checked_as_far_as_possible_and_it_is_said(tmp_path: Path, proteins: Path) -> None:
    out = write_old_output(tmp_path / "old.h5", proteins)
    assert "without checksums" in check_output(out, [str(proteins)]).lines()[1]
    with pytest.raises(OutputError, match="'P2' is zero throughout"):
        check_output(changed(out, lambda file: file["P2"].__setitem__(..., 0), sealed=False), [str(proteins)])


def test_an_older_file_with_a_key_that_is_not_known_is_refused(tmp_path: Path, proteins: Path) -> None:
    with pytest.raises(OutputError, match="key is 'sha1', not one of id, md5, biotrainer"):
        check_output(write_old_output(tmp_path / "old.h5", proteins, key="sha1"), [str(proteins)])


@pytest.mark.parametrize("suffix", [".h5", ".hdf5"])
def test_older_files_keep_their_list_where_they_had_it(tmp_path: Path, proteins: Path, suffix: str) -> None:
    out = write_old_output(tmp_path / f"old{suffix}", proteins)
    changed(out, lambda file: file.__delitem__("P2"), sealed=False)
    (tmp_path / "old.failed.tsv").write_text("id\treason\nP2\ttoo long\n")
    assert check_output(out, [str(proteins)]).failed == 1


def test_an_older_shard_is_known_by_its_name(tmp_path: Path, proteins: Path) -> None:
    half = tmp_path / "half.fasta"
    lengths = np.array([len(record.sequence) for record in read_fasta([proteins])], np.int32)
    part = Shard(2, 2).range(lengths)
    half.write_text(
        "".join(
            proteins.read_text().split(">P")[0:1]
            + [f">P{t}" for t in proteins.read_text().split(">P")[1:][part.start :]]
        )
    )
    out = write_old_output(tmp_path / "old.shard-2-of-2.h5", half)
    assert check_output(out, [str(proteins)]).records == len(part)


def test_older_files_take_their_key_and_policy_from_the_options(tmp_path: Path) -> None:
    fasta = tmp_path / "twice.fasta"
    fasta.write_text(">A first\nMKT\n>B\nMKTA\n")
    out = write_old_output(tmp_path / "old.h5", fasta)
    fasta.write_text(fasta.read_text() + ">A second\nMKTAY\n")
    with pytest.raises(InputError, match="same id"):
        check_output(out, [str(fasta)])
    assert check_output(out, [str(fasta)], Told(duplicates="first")).left_out == 1


def pack(file: h5py.File) -> None:
    """Pack every record with gzip, as h5repack does."""
    for key in list(file):
        values, attributes = file[key][()], dict(file[key].attrs)
        del file[key]
        file.create_dataset(key, data=values, compression="gzip", shuffle=True).attrs.update(attributes)


def test_a_file_that_was_packed_later_is_still_what_was_written(output: Path, proteins: Path) -> None:
    changed(output, pack, sealed=False)
    assert check_output(output, [str(proteins)]).records == 6
    changed(output, lambda file: file["P2"].__setitem__(0, 0.5), sealed=False)
    with pytest.raises(OutputError, match="'P2' is not what was written"):
        check_output(output, [str(proteins)])


def test_a_sample_is_spread_over_the_file(output: Path, proteins: Path) -> None:
    assert list(check_output(output, [str(proteins)], sample=3).sample) == ["P1", "P3", "P5"]
    assert list(check_output(output, [str(proteins)], sample=10**15).sample) == [f"P{n}" for n in range(6)]
    assert not check_output(output, [str(proteins)]).sample


def test_large_datasets_are_read_in_blocks(tmp_path: Path) -> None:
    fasta = tmp_path / "long.fasta"
    fasta.write_text(f">P0\n{'MKTAYIAKQR' * 30}\n")

    def compute(record: Any) -> Any:
        return np.random.default_rng(0).normal(size=(300, 5000)).astype("<f4")

    out = write_output(tmp_path / "out.h5", fasta, content="per-residue", values=compute)
    with SafeFile(out) as file:
        (dataset,) = file.datasets()
        pieces = list(dataset.blocks(64 * 1024))
        assert max(piece.nbytes for piece in pieces) <= 64 * 1024
        assert np.concatenate(list(pieces)).tobytes() == dataset.read().tobytes()
    assert check_output(out, [str(fasta)]).records == 1
    data = bytearray(out.read_bytes())
    data[len(data) // 2] ^= 1
    out.write_bytes(data)
    with pytest.raises(OutputError, match="'P0' is not what was written"):
        check_output(out, [str(fasta)])
