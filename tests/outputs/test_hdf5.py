"""HDF5 files: what other tools read, checksums, and no error of the disk that is lost."""

import errno
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from protembed.errors import OutputError
from protembed.outputs import hdf5
from protembed.outputs.content import ContentDigest, checksum, digest_attributes
from protembed.outputs.files import atomic
from protembed.outputs.hdf5 import Dataset, write_file

RECORDS = 40


def datasets(count: int = RECORDS, width: int = 300, dtype: str = "<f4") -> Iterator[Dataset]:
    for number in range(count):
        values = (np.arange(number, number + width) % 1000).astype(dtype)
        named = {"original_id": f"sp|P{number}|ß", "description": f"sp|P{number}|ß protein", "length": number + 3}
        data = values.tobytes()
        yield Dataset(f"sp|P{number}|ß", named, data, dtype, values.shape, zlib.crc32(data))


def write(path: Path, **words: Any) -> int:
    with atomic(path) as new:
        return write_file(new, datasets(**words), {"model_name": "m", "layer": 3, "flag": True})


def test_the_file_is_what_h5py_itself_would_write(tmp_path: Path) -> None:
    assert write(tmp_path / "a.h5") == RECORDS
    with h5py.File(tmp_path / "b.h5", "w", track_order=True) as file:
        for item in datasets():
            values = np.frombuffer(item.data, item.dtype)
            dataset = file.create_dataset(item.key, data=values)
            dataset.attrs.update({**item.attributes, "crc32": np.uint32(item.crc)})
        file.attrs.update({"model_name": "m", "layer": 3, "flag": True})
    with h5py.File(tmp_path / "a.h5") as ours, h5py.File(tmp_path / "b.h5") as theirs:
        assert list(ours) == list(theirs)
        for key in theirs:
            one, other = ours[key], theirs[key]
            assert (one.dtype, one.shape, one.chunks) == (other.dtype, other.shape, other.chunks)
            assert one[()].tobytes() == other[()].tobytes()
            assert list(one.attrs) == list(other.attrs)
            for name in other.attrs:
                assert one.attrs[name] == other.attrs[name]
                assert one.attrs.get_id(name).get_type() == other.attrs.get_id(name).get_type()
                assert one.attrs.get_id(name).dtype == other.attrs.get_id(name).dtype
        assert dict(theirs.attrs).items() <= dict(ours.attrs).items()


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a.h5")
    rubbish = [np.full(10_000 + n, 7) for n in range(100)]  # whatever the memory held before
    del rubbish
    write(tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_checksums(tmp_path: Path) -> None:
    write(tmp_path / "a.h5")
    digest = ContentDigest()
    with h5py.File(tmp_path / "a.h5") as file:
        for key in file:
            values, named = file[key][()], file[key].attrs
            assert named["crc32"] == checksum(values)
            assert named["crc32"].dtype == np.uint32
            digest.add(key, named, values.dtype.str, values.shape, int(named["crc32"]))
        assert file.attrs["content_sha256"] == digest.hexdigest()
        assert file.attrs["attributes_sha256"] == digest_attributes(dict(file.attrs))
        assert (file.attrs["records"], bool(file.attrs["complete"])) == (RECORDS, True)


@pytest.mark.parametrize(("count", "width"), [(0, 3), (1, 1), (3, 100_000)])
def test_sizes(tmp_path: Path, count: int, width: int) -> None:
    assert write(tmp_path / "a.h5", count=count, width=width, dtype="<f2") == count
    with h5py.File(tmp_path / "a.h5") as file:
        assert [file[key].shape for key in file] == [(width,)] * count


def test_a_key_that_comes_twice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="comes twice"), atomic(tmp_path / "a.h5") as new:
        write_file(new, [*datasets(3), *datasets(1)], {})
    assert list(tmp_path.iterdir()) == []


class Failing:
    """A function of `os` that fails at the call of that number, once or from it on."""

    def __init__(self, name: str, at: int, number: int, *, once: bool = False) -> None:
        self._real, self._at, self._number, self._once = getattr(os, name), at, number, once
        self.calls = 0

    def __call__(self, *words: Any) -> Any:
        self.calls += 1
        if self._at and (self.calls == self._at or (self.calls > self._at and not self._once)):
            raise OSError(self._number, os.strerror(self._number))
        return self._real(*words)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
@pytest.mark.parametrize("once", [True, False])
def test_every_write_that_fails_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, once: bool
) -> None:
    counting = Failing("pwrite", 0, number)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", counting)
        write(tmp_path / "a.h5")
    assert counting.calls > RECORDS
    for at in (*range(1, counting.calls, counting.calls // 12), counting.calls - 1, counting.calls):
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", Failing("pwrite", at, number, once=once))
            with pytest.raises(OutputError, match=r"cannot be written \(") as caught:
                write(tmp_path / "b.h5")
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == number
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5"]


@pytest.mark.parametrize("call", ["ftruncate", "fsync"])
def test_other_calls_that_fail_are_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    monkeypatch.setattr(os, call, Failing(call, 1, errno.ENOSPC))
    with pytest.raises(OutputError, match="the disk is full"):
        write(tmp_path / "b.h5")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_keeps_other_bytes_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite

    def flip(descriptor: int, data: Any, place: int) -> int:
        changed = bytes(data).replace(np.float32(30).tobytes(), np.float32(31).tobytes())
        return real(descriptor, changed, place)

    monkeypatch.setattr(os, "pwrite", flip)
    with pytest.raises(OutputError, match="is not what was written"):
        write(tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.h5", count=4)
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, place: real(descriptor, bytes(data[:100]), place))
    write(tmp_path / "b.h5", count=4)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "new").symlink_to(tmp_path / "victim")
    with pytest.raises(OutputError):
        hdf5.write_file(tmp_path / "new", datasets(1), {})
    assert (tmp_path / "victim").read_text() == "precious"
