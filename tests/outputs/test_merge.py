"""`merge` makes of all shards of a run what the run without shards would have written; anything else is an error."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from protembed.errors import OutputError, ProtembedError
from protembed.outputs.check import check_output
from protembed.outputs.content import digest_attributes
from protembed.outputs.disk import Disk
from protembed.outputs.files import lock
from protembed.outputs.hdf5 import _created
from protembed.outputs.merge import Merged, merge_shards
from protembed.outputs.safe_hdf5 import SafeFile
from protembed.sequences.records import read_fasta
from protembed.sequences.shard import Shard
from tests.outputs.made import (
    Change,
    changed,
    replace_values,
    write_old_output,
    write_output,
    write_proteins,
)

CONTENTS = ["per-protein", "per-residue", "contacts", "residue_classes", "sequence_value"]
COUNT = 3


@pytest.fixture
def proteins(tmp_path: Path) -> Path:
    return write_proteins(tmp_path / "proteins.fasta")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "merged.h5"


def write_shards(folder: Path, proteins: Path, **how: Any) -> list[Path]:
    return [
        write_output(folder / f"out.shard-{number}-of-{COUNT}.h5", proteins, shard=f"{number}/{COUNT}", **how)
        for number in range(1, COUNT + 1)
    ]


def nothing_left(folder: Path, before: set[str]) -> bool:
    return set(os.listdir(folder)) == before


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("failed", [[], ["P0", "P4"], ["P5"]])
def test_the_whole_is_what_one_run_would_have_written(
    tmp_path: Path, proteins: Path, out: Path, content: str, failed: list[str]
) -> None:
    shards = write_shards(tmp_path, proteins, content=content, failed=failed)
    whole = write_output(tmp_path / "whole.h5", proteins, content=content, failed=failed)
    assert merge_shards(out, shards[::-1]) == Merged(records=6 - len(failed), failed=len(failed))
    assert check_output(out, [str(proteins)]).failed == len(failed)
    with h5py.File(out) as one, h5py.File(whole) as other:
        assert list(one) == list(other)
        assert dict(one.attrs) == dict(other.attrs)
        for key in other:
            assert np.array_equal(one[key][()], other[key][()])
            assert dict(one[key].attrs) == dict(other[key].attrs)
    lists = [path.with_suffix(".failed.tsv") for path in (out, whole)]
    assert [path.exists() for path in lists] == [bool(failed)] * 2
    assert not failed or lists[0].read_text() == lists[1].read_text()


def test_an_older_list_of_failures_is_not_left_beside_the_whole(tmp_path: Path, proteins: Path, out: Path) -> None:
    merge_shards(out, write_shards(tmp_path, proteins, failed=["P1"]))
    merge_shards(out, write_shards(tmp_path, proteins), overwrite=True)
    assert not out.with_suffix(".failed.tsv").exists() or "P1" not in out.with_suffix(".failed.tsv").read_text()


def say(name: str, value: Any) -> Change:
    return lambda file: file.attrs.__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (say("input_digest", "0" * 32), "was made from another input than"),
        (say("input_records", 7), "was made from another input than"),
        (say("weights_sha256", "f" * 64), "was computed with other weights than"),
        (say("model_name", "esm2_8m"), "was computed with another model than"),
        (say("content", "per-residue"), "holds something else than"),
        (say("task", "ss8"), "is of another task than"),
        (say("options", '{"layer": 3}'), r"says \{\"layer\": 3\} for options"),
        (say("key", "md5"), "says md5 for key"),
        (say("duplicates", "first"), "says first for duplicates"),
        (say("unknown", "error"), "says error for unknown"),
        (say("layer", 3), "says 3 for layer"),
        (say("dtype", "float16"), "says float16 for dtype"),
        (say("tool_version", "0.0.9"), "says 0.0.9 for tool_version"),
        (say("job_sha256", "f" * 64), "for job_sha256"),
        (say("long_policy", "truncate"), "says truncate for long_policy"),
        (say("residue_limit", 5), "says 5 for residue_limit"),
        (say("special_tokens_excluded", False), "for special_tokens_excluded"),
        (say("complete", False), "is not complete"),
        (say("first_record", 1), "begins at record 1, not at"),
        (say("records", 17), "begins at record"),
        (
            lambda file: file.attrs.update(failed_records=1, records=file.attrs["records"] - 1),
            "the list beside it 0",
        ),
        (say("shard", "3/3"), "is named shard 2 of 3, and holds shard 3 of 3"),
        (say("shard", "1/1"), "is named shard 2 of 3, and holds shard 1 of 1"),
        (lambda file: file.attrs.__delitem__("shard"), "does not say its shard"),
        (lambda file: file.attrs.__delitem__("format_version"), "are of different versions"),
    ],
)
def test_shards_of_several_runs_are_refused_and_the_difference_is_named(
    tmp_path: Path, proteins: Path, out: Path, change: Change, message: str
) -> None:
    shards = write_shards(tmp_path, proteins)
    changed(shards[1], change)
    before = set(os.listdir(tmp_path))
    with pytest.raises(ProtembedError, match=message):
        merge_shards(out, shards)
    assert nothing_left(tmp_path, before)


def test_other_arithmetic_is_refused_but_another_gpu_of_the_same_run_is_not(
    tmp_path: Path, proteins: Path, out: Path
) -> None:
    shards = write_shards(tmp_path, proteins)
    changed(shards[1], lambda file: file.attrs.update(computed_with="torch, cpu, bfloat16", job_sha256="f" * 64))
    with pytest.raises(ProtembedError, match="was computed with other arithmetic than"):
        merge_shards(out, shards)
    changed(shards[1], lambda file: file.attrs.update(computed_with="torch, cuda:1, float32", job_sha256="1" * 64))
    assert merge_shards(out, shards).records == 6


def first(file: h5py.File) -> str:
    return next(iter(file))


def test_shards_of_two_files_of_one_run_are_refused(tmp_path: Path, proteins: Path, out: Path) -> None:
    shards = write_shards(tmp_path, proteins)
    (tmp_path / "rows").mkdir()
    rows = write_shards(tmp_path / "rows", proteins, content="per-residue")
    with pytest.raises(ProtembedError, match="holds something else than"):
        merge_shards(out, [shards[0], rows[1], shards[2]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: replace_values(file, first(file), np.zeros(8, "f4"), checksum=False), "is not what was written"),
        (lambda file: replace_values(file, first(file), np.zeros(8, "f4"), checksum=True), "is zero throughout"),
        (lambda file: replace_values(file, first(file), np.ones(8, "f4"), checksum=True), "as a whole are not those"),
        (lambda file: file[first(file)].attrs.__setitem__("original_id", "P9"), "as a whole are not those"),
        (lambda file: file.__delitem__(first(file)), r"has 1 of 2 records"),
        (lambda file: file.copy(first(file), "P9"), r"has 3 of 2 records"),
    ],
)
def test_a_shard_that_is_not_as_it_was_written_is_refused(
    tmp_path: Path, proteins: Path, out: Path, change: Change, message: str
) -> None:
    shards = write_shards(tmp_path, proteins)
    changed(shards[1], change)
    before = set(os.listdir(tmp_path))
    with pytest.raises(ProtembedError, match=message):
        merge_shards(out, shards)
    assert nothing_left(tmp_path, before)


def test_flipped_bits_of_shards_do_not_get_into_the_whole(tmp_path: Path, proteins: Path, out: Path) -> None:
    shards = write_shards(tmp_path, proteins)
    whole = shards[1].read_bytes()
    random = np.random.default_rng(0)
    merge_shards(tmp_path / "right.h5", shards)
    right = (tmp_path / "right.h5").read_bytes()
    for _ in range(60):
        data = bytearray(whole)
        data[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))
        shards[1].write_bytes(data)
        try:
            merge_shards(out, shards, overwrite=True)
        except ProtembedError:
            continue
        assert out.read_bytes() == right


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda s: s[:2], "shard 3 is missing, of 3"),
        (lambda s: s[2:], "shard 1 is missing and 1 more, of 3"),
        (lambda s: [*s, s[1]], "are both shard 2"),
        (lambda s: [], "no shards are named"),
    ],
)
def test_every_shard_is_there_once(
    tmp_path: Path, proteins: Path, out: Path, choose: Callable[[list[Path]], list[Path]], message: str
) -> None:
    with pytest.raises(ProtembedError, match=message):
        merge_shards(out, choose(write_shards(tmp_path, proteins)))


def test_one_shard_under_two_names_is_noticed(tmp_path: Path, proteins: Path, out: Path) -> None:
    shards = write_shards(tmp_path, proteins)
    copy = tmp_path / "copy.h5"
    copy.write_bytes(shards[0].read_bytes())
    with pytest.raises(ProtembedError, match="are both shard 1"):
        merge_shards(out, [*shards, copy])


def test_shards_keep_their_numbers_when_they_are_renamed(tmp_path: Path, proteins: Path, out: Path) -> None:
    shards = write_shards(tmp_path, proteins)
    renamed = [path.rename(tmp_path / f"{letter}.h5") for path, letter in zip(shards, "cab", strict=True)]
    assert merge_shards(out, sorted(renamed)).records == 6
    assert check_output(out, [str(proteins)]).records == 6


def test_a_whole_output_is_no_shard(tmp_path: Path, proteins: Path, out: Path) -> None:
    with pytest.raises(ProtembedError, match="is not a shard"):
        merge_shards(out, [write_output(tmp_path / "whole.h5", proteins)])


@pytest.mark.parametrize("edit", ["gone", "short", "folder"])
def test_a_list_of_failures_that_is_not_whole_is_noticed(tmp_path: Path, proteins: Path, out: Path, edit: str) -> None:
    shards = write_shards(tmp_path, proteins, failed=["P0", "P1"])
    listed = shards[0].with_suffix(".failed.tsv")
    text = listed.read_text()
    listed.unlink()
    if edit == "short":
        listed.write_text(text[: text.index("P1")])
    if edit == "folder":
        listed.mkdir()
    with pytest.raises(ProtembedError, match=r"the list beside it|its list of failures"):
        merge_shards(out, shards)


@pytest.mark.parametrize("how", ["path", "symbolic", "hard", "failures"])
def test_an_output_that_is_one_of_the_shards_is_refused(tmp_path: Path, proteins: Path, how: str) -> None:
    shards = write_shards(tmp_path, proteins, failed=["P0"])
    kept = [path.read_bytes() for path in shards]
    out = tmp_path / "link.h5"
    if how == "symbolic":
        out.symlink_to(shards[1])
    elif how == "hard":
        out.hardlink_to(shards[1])
    elif how == "failures":
        out.with_suffix(".failed.tsv").symlink_to(shards[0].with_suffix(".failed.tsv"))
    else:
        out = shards[1]
    with pytest.raises(OutputError, match="is one of the shards"):
        merge_shards(out, shards, overwrite=True)
    assert [path.read_bytes() for path in shards] == kept


def test_an_output_that_exists_or_is_in_use_or_is_no_file_is_refused(tmp_path: Path, proteins: Path, out: Path) -> None:
    shards = write_shards(tmp_path, proteins)
    out.write_text("precious")
    with pytest.raises(OutputError, match="exists"):
        merge_shards(out, shards)
    with lock(out), pytest.raises(OutputError, match="another run is working on this output"):
        merge_shards(out, shards, overwrite=True)
    assert out.read_text() == "precious"
    (tmp_path / "folder").mkdir()
    for name in ("folder", "no such folder/out.h5", "/dev/null", "-", "out.csv", "out.tsv"):
        with pytest.raises(ProtembedError):
            merge_shards(tmp_path / name if name[0] not in "-/" else Path(name), shards, overwrite=True)
    assert merge_shards(out, shards, overwrite=True).records == 6


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path: Path, proteins: Path, out: Path) -> None:
    shards = write_shards(tmp_path, proteins, content="per-residue")
    before = set(os.listdir(tmp_path))
    code = (
        "import resource, signal, sys; from pathlib import Path; from protembed.outputs.merge import merge_shards\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "from protembed.errors import OutputError\n"
        "try: merge_shards(Path(sys.argv[1]), [Path(p) for p in sys.argv[2:]])\n"
        "except OutputError as error: print(error)"
    )
    words = [sys.executable, "-c", code, str(out), *map(str, shards)]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{out}: cannot be written (the file is too large)\n"
    assert nothing_left(tmp_path, before)


def test_older_shards_are_merged_as_far_as_they_can_be_told(tmp_path: Path, proteins: Path, out: Path) -> None:
    lengths = np.array([len(record.sequence) for record in read_fasta([proteins])], np.int32)
    texts = [f">P{text}" for text in proteins.read_text().split(">P")[1:]]
    shards = []
    for number in (1, 2):
        part = Shard(number, 2).range(lengths)
        (tmp_path / "part.fasta").write_text("".join(texts[part.start : part.stop]))
        shard = tmp_path / f"old.shard-{number}-of-2.h5"
        shards.append(write_old_output(shard, tmp_path / "part.fasta", long_proteins=["none", "split"][number - 1]))
    assert merge_shards(out, shards).records == 6
    found = check_output(out, [str(proteins)])
    assert "without checksums" in found.lines()[1]
    assert found.origin.text("long_proteins") == "split"
    changed(shards[1], lambda file: file.attrs.__setitem__("layer", 3), sealed=False)
    with pytest.raises(ProtembedError, match="says 3 for layer"):
        merge_shards(out, shards, overwrite=True)


def write_text_shards(folder: Path, form: str = "tsv", *, suffix: str | None = None) -> list[Path]:
    """Write text shards as `predict` does, each with the file that says of which run it is."""
    header = "id\ttask\tposition\tresidue\tpartner\tlabel\tvalue\n" if form == "tsv" else ""
    paths, place = [], 0
    for number, count in enumerate((2, 0, 3), start=1):
        text = header + "".join(f"P{place + index}\tss3\t1\tM\t\tH\t0.9\n" for index in range(count))
        path = folder / f"out.shard-{number}-of-3.{suffix if suffix is not None else form}"
        path.write_text(text)
        said: dict[str, Any] = {"first_record": place, "records": count, "bytes": len(text)}
        said |= {"shard": f"{number}/3", "content_sha256": sha256(text.encode()).hexdigest(), "complete": True}
        said |= {"content": "text", "model_name": "tiny", "weights_sha256": "0" * 64, "computed_with": "torch"}
        said |= {"tool_version": "0.1.0", "key": "id", "duplicates": "error", "unknown": "x", "input_records": 5}
        said |= {"input_digest": "0" * 32, "options": json.dumps({"format": form}), "job_sha256": "1" * 64}
        said |= {"run_sha256": "2" * 64, "failed_records": 0, "left_out_records": 0, "format_version": 2}
        said["attributes_sha256"] = digest_attributes(said)
        path.with_name(path.name + ".run.json").write_text(json.dumps(said))
        paths.append(path)
        place += count
    return paths


@pytest.mark.parametrize("form", ["tsv", "jsonl"])
def test_text_shards_are_put_end_to_end_under_one_header(tmp_path: Path, form: str) -> None:
    out = tmp_path / f"merged.{form}"
    shards = write_text_shards(tmp_path, form)
    assert merge_shards(out, shards[::-1]) == Merged(records=5, failed=0)
    lines = out.read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["id"] * (form == "tsv") + [f"P{n}" for n in range(5)]
    assert not out.with_name(out.name + ".run.json").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s[0].write_text(s[0].read_text().replace("0.9", "0.8")), "its checksum is wrong"),
        (lambda s: s[0].write_text(s[0].read_text()[:-5]), "its checksum is wrong"),
        (lambda s: s[0].with_name(s[0].name + ".run.json").unlink(), "says of which run it is, is not there"),
        (lambda s: s[0].with_name(s[0].name + ".run.json").write_text("[" * 100_000), "cannot be read as JSON"),
        (lambda s: s[0].with_name(s[0].name + ".run.json").write_text('{"shard": [1]}'), "not an object of texts"),
        (lambda s: s[0].with_name(s[0].name + ".run.json").write_text("\0"), "cannot be read as JSON"),
        (lambda s: s[0].unlink(), "cannot be read"),
    ],
)
def test_text_shards_that_are_not_as_they_were_written_are_refused(
    tmp_path: Path, spoil: Callable[[list[Path]], object], message: str
) -> None:
    shards = write_text_shards(tmp_path)
    spoil(shards)
    with pytest.raises(ProtembedError, match=message):
        merge_shards(tmp_path / "merged.tsv", shards)
    assert not (tmp_path / "merged.tsv").exists()


def test_text_and_hdf5_do_not_merge(tmp_path: Path, proteins: Path) -> None:
    text = write_text_shards(tmp_path)
    for out, shards in (
        (tmp_path / "m.h5", text),
        (tmp_path / "m.tsv", [*text[:2], *write_shards(tmp_path, proteins)]),
    ):
        with pytest.raises(ProtembedError, match="of several formats"):
            merge_shards(out, shards)


def test_what_hdf5_remembers_of_shards_and_of_the_whole_is_bounded(tmp_path: Path) -> None:
    """By default its cache of metadata takes a hundred megabytes after some ten thousand records."""
    fasta = tmp_path / "many.fasta"
    fasta.write_text("".join(f">P{number}\nMKT\n" for number in range(1_500)))
    (out := tmp_path / "new.h5").touch()
    with SafeFile(write_output(tmp_path / "many.h5", fasta)) as file, Disk(out) as disk, _created(disk) as new:
        for number, dataset in enumerate(file.datasets()):
            new[dataset.name] = np.full(8, number)
        for cache in (file._file, new.id):
            most, _, now, _ = cache.get_mdc_size()
            assert max(most, now) <= 2**20
