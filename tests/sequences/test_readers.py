"""Proteins that do not come as FASTA: TAPE's LMDB and Parquet, whole and damaged."""

import os
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from protembed.errors import DependencyError, InputError
from protembed.sequences.readers import read_lmdb, read_proteins
from tests.conftest import write_fasta

lmdb = pytest.importorskip("lmdb")
parquet = pytest.importorskip("pyarrow.parquet")
pyarrow = pytest.importorskip("pyarrow")

PFAM = [
    {"primary": "MKTAYIAKQR", "protein_length": 10, "family": 12, "clan": 7, "id": b"P1"},
    {"primary": "mkv", "protein_length": 3, "family": 13, "clan": 7},
]


def write_lmdb(path: Path, entries: Mapping[bytes, bytes], *, folder: bool = True) -> Path:
    with lmdb.open(str(path), subdir=folder, map_size=1 << 20) as database, database.begin(write=True) as transaction:
        for key, value in entries.items():
            transaction.put(key, value)
    return path


def pickled(records: Sequence[object], protocol: int = 3) -> dict[bytes, bytes]:
    entries = {str(number).encode(): pickle.dumps(record, protocol) for number, record in enumerate(records)}
    return {**entries, b"num_examples": pickle.dumps(len(records), protocol)}


class TestLmdb:
    @pytest.mark.parametrize("folder", [True, False])
    def test_proteins_with_their_families(self, tmp_path: Path, folder: bool) -> None:
        path = write_lmdb(tmp_path / "pfam.lmdb", pickled(PFAM), folder=folder)
        records = list(read_proteins([path]))
        assert [(record.id, record.sequence) for record in records] == [("P1", "MKTAYIAKQR"), ("1", "MKV")]
        assert [record.description for record in records] == ["P1 cluster=12", "1 cluster=13"]

    @pytest.mark.parametrize("protocol", [2, 3, 5])
    def test_fields_of_labelled_tasks(self, tmp_path: Path, protocol: int) -> None:
        fields = {
            "primary": "MKV",
            "id": b"1abcA",
            "ss8": np.array([1, 2, 7]),
            "tertiary": np.ones((3, 3), np.float32),
            "valid_mask": np.array([True, False, True]),
            "log_fluorescence": np.float64(3.5),
            "fold_label": 4,
        }
        (found,) = read_lmdb(write_lmdb(tmp_path / "task.lmdb", pickled([fields], protocol)))
        assert list(found) == list(fields)
        for name, value in fields.items():
            np.testing.assert_array_equal(found[name], value)  # type: ignore[arg-type]

    def test_names_of_numpy_1(self, tmp_path: Path) -> None:
        entries = pickled([{"primary": "MKV", "ss3": np.arange(3)}], protocol=0)
        assert b"numpy._core" in entries[b"0"]
        entries[b"0"] = entries[b"0"].replace(b"numpy._core", b"numpy.core")
        (found,) = read_lmdb(write_lmdb(tmp_path / "task.lmdb", entries))
        assert found["ss3"].tolist() == [0, 1, 2]  # type: ignore[attr-defined]

    def test_code_is_not_run(self, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple[object, ...]:
                return (os.mkdir, (str(tmp_path / "run"),))

        path = write_lmdb(tmp_path / "evil.lmdb", pickled([PFAM[0], Evil()]))
        with pytest.raises(InputError, match=r"evil.lmdb, record 1: .*asks to run posix.mkdir; nothing was run"):
            list(read_lmdb(path))
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ({b"0": pickle.dumps(PFAM[0])}, "the entry is missing"),
            ({b"num_examples": pickle.dumps(1)}, "record 0: .*the entry is missing"),
            ({b"num_examples": pickle.dumps(1), b"0": pickle.dumps(PFAM[0])[:-20]}, "record 0: .*"),
            ({b"num_examples": pickle.dumps(1), b"0": b"garbage"}, "record 0: .*"),
            ({b"num_examples": pickle.dumps(1), b"0": pickle.dumps(3)}, "record 0: .*"),
        ],
    )
    def test_damage_is_named(self, tmp_path: Path, entries: dict[bytes, bytes], message: str) -> None:
        with pytest.raises(InputError, match=rf"bad.lmdb.*{message}"):
            list(read_lmdb(write_lmdb(tmp_path / "bad.lmdb", entries)))

    @pytest.mark.parametrize("folder", [True, False])
    def test_a_file_cut_short(self, tmp_path: Path, *, folder: bool) -> None:
        many = pickled([PFAM[0]] * 2000)
        path = write_lmdb(tmp_path / "cut.lmdb", many, folder=folder)
        file = path / "data.mdb" if folder else path
        assert len(list(read_lmdb(path))) == 2000
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises(InputError, match=r"cut\.lmdb: .*the file is cut short"):
            list(read_lmdb(path))

    def test_not_lmdb_at_all(self, tmp_path: Path) -> None:
        (tmp_path / "a.lmdb").write_bytes(b"x" * 10_000)
        with pytest.raises(InputError, match=r"a.lmdb: not a data set"):
            list(read_lmdb(tmp_path / "a.lmdb"))
        with pytest.raises(InputError, match="no such file"):
            list(read_lmdb(tmp_path / "b.lmdb"))

    def test_a_task_without_sequences(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="record 0: has no field 'primary'"):
            list(read_proteins([write_lmdb(tmp_path / "a.lmdb", pickled([{"x": 1}]))]))


class TestParquet:
    def test_columns_and_row_groups(self, tmp_path: Path) -> None:
        table = {
            "cluster": ["C1", None, "C 2"],
            "other": [1, 2, 3],
            "id": ["a", "b", "c"],
            "sequence": ["MK-V", "mk", "M"],
        }
        parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet", row_group_size=2)
        records = list(read_proteins([tmp_path / "a.parquet"]))
        assert [(r.id, r.sequence, r.gaps) for r in records] == [("a", "MKV", 1), ("b", "MK", 0), ("c", "M", 0)]
        assert [record.description for record in records] == ["a cluster=C1", "b", "c cluster=C_2"]

    def test_a_bad_row_is_named(self, tmp_path: Path) -> None:
        parquet.write_table(pyarrow.table({"sequence": ["MK", None]}), tmp_path / "a.parquet")
        with pytest.raises(InputError, match=r"a.parquet, row 1: record '1' has no residues"):
            list(read_proteins([tmp_path / "a.parquet"]))

    def test_no_sequences_or_no_parquet(self, tmp_path: Path) -> None:
        parquet.write_table(pyarrow.table({"seq": ["MK"]}), tmp_path / "a.parquet")
        with pytest.raises(InputError, match="no column 'sequence'") as error:
            list(read_proteins([tmp_path / "a.parquet"]))
        assert "seq" in error.value.hint
        (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
        for name in ("b", "gone"):
            with pytest.raises(InputError, match="cannot be read as Parquet"):
                list(read_proteins([tmp_path / f"{name}.parquet"]))


def test_sources_make_one_stream(tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "a.fasta", {"x cluster=1": "MA"})
    found = read_proteins([fasta, write_lmdb(tmp_path / "b.lmdb", pickled(PFAM)), str(fasta)])
    assert [record.id for record in found] == ["x", "P1", "1", "x"]


@pytest.mark.parametrize(("module", "suffix"), [("lmdb", "lmdb"), ("pyarrow", "parquet")])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, suffix: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DependencyError) as error:
        list(read_proteins([tmp_path / f"a.{suffix}"]))
    assert error.value.hint == f"pip install 'protembed[{suffix}]'"


def test_packages_are_not_loaded_for_fasta(tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "a.fasta", {"x": "MA"})
    code = (
        "import sys; from protembed.sequences.readers import read_proteins; "
        f"list(read_proteins([{str(fasta)!r}])); print({{'lmdb', 'pyarrow', 'torch'}} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
