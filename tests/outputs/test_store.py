"""`protembed.open`: records by id or key, in order, and only what was asked for is read."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import protembed
from protembed.errors import InputError
from protembed.outputs.safe_hdf5 import SafeFile
from protembed.sequences.records import Record, read_fasta
from tests.outputs.made import changed, values_of, write_old_output, write_output, write_proteins


@pytest.fixture
def proteins(tmp_path: Path) -> Path:
    return write_proteins(tmp_path / "proteins.fasta")


def test_a_file_is_a_mapping_from_ids_to_values_in_order(tmp_path: Path, proteins: Path) -> None:
    out = write_output(tmp_path / "out.h5", proteins)
    with protembed.open(out) as store:
        assert len(store) == 6
        assert list(store) == [f"P{number}" for number in range(6)]
        for record in read_fasta([proteins]):
            assert np.array_equal(store[record.id], values_of(record))
        assert store.attributes["model_name"] == "tiny"
        assert "P1" in store
        assert "P9" not in store
        assert 5 not in store


@pytest.mark.parametrize("key", ["md5", "biotrainer"])
def test_other_keys_are_found_by_id_too(tmp_path: Path, proteins: Path, key: str) -> None:
    out = write_output(tmp_path / "out.h5", proteins, key=key)
    with h5py.File(out) as file, protembed.open(out) as store:
        assert list(store) == [f"P{number}" for number in range(6)]
        for name, stored in zip(store, file, strict=True):
            assert np.array_equal(store[name], store[stored])


def test_a_name_that_is_not_there_says_what_is(tmp_path: Path, proteins: Path) -> None:
    with protembed.open(write_output(tmp_path / "out.h5", proteins)) as store:
        with pytest.raises(KeyError, match=r"P9 is not in .*out\.h5: it holds 6 records, such as P0"):
            store["P9"]
        assert store.get("P9") is None
        for name in ("", ".", "/", "P0/..", "P\0", "/P0", "\udc80"):
            assert name not in store


def test_a_name_that_is_not_there_is_known_without_opening_every_record(
    tmp_path: Path, proteins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    once = SafeFile.open
    monkeypatch.setattr(SafeFile, "open", lambda self, name: opened.append(name) or once(self, name))
    with protembed.open(write_output(tmp_path / "out.h5", proteins)) as store:
        assert "P9" not in store
        assert not opened


def test_of_records_with_one_id_each_is_read_as_itself(tmp_path: Path) -> None:
    fasta = tmp_path / "twice.fasta"
    fasta.write_text(">A first\nMKT\n>a/b\nMKTA\n>A second\nMKTAY\n>a_b\nMKTAYI\n")
    keys = ["A", "a_b", "A_2", "a_b_2"]
    first, slash, second, line = read_fasta([fasta])
    out = write_output(tmp_path / "out.h5", fasta, keys=keys, duplicates="suffix")
    with protembed.open(out) as store:
        assert list(store) == ["A", "a/b", "A_2", "a_b"]
        for name, record in zip(store, (first, slash, second, line), strict=True):
            assert np.array_equal(store[name], values_of(record))
        assert np.array_equal(store["a_b_2"], values_of(line))


def test_an_id_that_shares_its_key_with_another_is_not_there(tmp_path: Path) -> None:
    fasta = tmp_path / "one.fasta"
    fasta.write_text(">a_b\nMKTA\n")
    with protembed.open(write_output(tmp_path / "out.h5", fasta)) as store:
        assert "a/b" not in store
        assert "a_b" in store


@pytest.mark.parametrize("key", ["md5", None])
def test_of_two_records_with_one_id_under_other_keys_neither_is_taken_for_the_other(
    tmp_path: Path, key: str | None
) -> None:
    out = tmp_path / "out.h5"
    with h5py.File(out, "w", track_order=True) as file:
        for name, sequence in (("x" * 32, "MKT"), ("y" * 32, "MKTA"), ("z" * 32, "MK")):
            record = Record("B" if name[0] == "z" else "A", sequence)
            file[name] = values_of(record)
            file[name].attrs["original_id"] = record.id
        if key:
            file.attrs["key"] = key
    with protembed.open(out) as store:
        assert list(store) == ["x" * 32, "y" * 32, "B"]
        assert "A" not in store
        assert np.array_equal(store["y" * 32], values_of(Record("A", "MKTA")))


def test_older_files_and_those_of_other_tools_are_read(tmp_path: Path, proteins: Path) -> None:
    with protembed.open(write_old_output(tmp_path / "old.h5", proteins)) as store:
        assert list(store) == [f"P{number}" for number in range(6)]
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["b"] = np.ones((3, 4), "f8")
        file["a"] = np.ones(4, "f2")
    with protembed.open(tmp_path / "other.h5") as store:
        assert {name: values.shape for name, values in store.items()} == {"a": (4,), "b": (3, 4)}


@pytest.mark.parametrize("how", [{}, {"shuffle": True}, {"chunks": (3, 3)}, {"maxshape": (None, 9), "chunks": (8, 9)}])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_values_that_another_program_has_packed_are_read(tmp_path: Path, how: dict[str, object], dtype: str) -> None:
    values = np.random.default_rng(0).normal(size=(10, 7)).astype(dtype)
    with h5py.File(tmp_path / "packed.h5", "w") as file:
        file.create_dataset("gzip", data=values, compression="gzip", **how)
        file.create_dataset("vector", data=values[:, 0], compression="gzip")
        file.create_dataset("shuffled", data=values, shuffle=True)
        file.create_dataset("summed", data=values, fletcher32=True)
    with protembed.open(tmp_path / "packed.h5") as store:
        assert np.array_equal(store["vector"], values[:, 0])
        for name in ("gzip", "shuffled", "summed"):
            assert np.array_equal(store[name], values)


def test_one_record_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path, proteins: Path) -> None:
    out = changed(write_output(tmp_path / "out.h5", proteins), lambda file: file.create_group("bad"))
    with protembed.open(out) as store:
        assert store["P3"].shape == (8,)
        with pytest.raises(InputError, match="bad is a group"):
            store["bad"]


def test_a_store_that_is_never_closed_does_not_crash_python(tmp_path: Path, proteins: Path) -> None:
    out = write_output(tmp_path / "out.h5", proteins)
    code = "import protembed, sys; s = protembed.open(sys.argv[1]); v = s._file['P1']; print(s['P1'].shape)"
    result = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "(8,)\n")


def test_closed_stores_leave_no_file_open(tmp_path: Path, proteins: Path) -> None:
    out = write_output(tmp_path / "out.h5", proteins)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with protembed.open(out) as store:
            list(store)
        forgotten = protembed.open(out)
        del forgotten
    (tmp_path / "bad.h5").write_bytes(out.read_bytes()[:1000])
    for _ in range(20):
        with pytest.raises(InputError):
            protembed.open(tmp_path / "bad.h5")
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_values_read_after_closing_are_an_error(tmp_path: Path, proteins: Path) -> None:
    with protembed.open(write_output(tmp_path / "out.h5", proteins)) as store:
        pass
    with pytest.raises(InputError):
        store["P1"]
