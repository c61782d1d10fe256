"""Exporting: one owner, whole files under their names or none, and nothing of the user's is replaced."""

import multiprocessing
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from protembed.backends.load import ModelOptions
from protembed.backends.onnx import export as exporting
from protembed.backends.onnx import writer
from protembed.backends.onnx.export import ExportOptions, export_model
from protembed.backends.onnx.file import OnnxFile
from protembed.errors import ModelError, OutputError
from protembed.outputs.files import lock
from tests.conftest import Run


def export(model: Path, out: Path, **how: Any) -> list[Path]:
    return export_model(ModelOptions(model=str(model), device="cpu"), ExportOptions(out=out, **how)).files


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the weights of every model into a second file."""
    write = exporting.write_onnx
    monkeypatch.setattr(exporting, "write_onnx", lambda *words, **how: write(*words, **how, largest=1000))


def hold(path: Path, ready: Any, done: Any) -> None:
    with lock(path):
        ready.set()
        done.wait(60)


def test_a_second_export_to_one_file_is_refused(model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny.onnx"
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(out, ready, done))
    other.start()
    try:
        assert ready.wait(60)
        for overwrite in (False, True):
            with pytest.raises(OutputError, match="another run is working on this ONNX file"):
                export(model_file, out, overwrite=overwrite)
    finally:
        done.set()
        other.join()
    export(model_file, out)
    assert sorted(os.listdir(tmp_path)) == ["tiny.onnx"], "neither lock nor temporary files are left"


@pytest.mark.parametrize("link", ["symbolic", "hard"])
def test_the_model_itself_is_never_replaced(model_file: Path, tmp_path: Path, link: str) -> None:
    native, out = tmp_path / "model.safetensors", tmp_path / "model.onnx"
    native.write_bytes(model_file.read_bytes())
    if link == "hard":
        out.hardlink_to(native)
    else:
        out.symlink_to(native)
    with pytest.raises(OutputError, match="is the model that is to be exported"):
        export(native, out, overwrite=True)
    out.unlink()
    (tmp_path / "model.onnx.data").hardlink_to(native)
    with pytest.raises(OutputError, match="is the model that is to be exported"):
        export(native, out, overwrite=True)
    assert native.read_bytes() == model_file.read_bytes()


@pytest.mark.usefixtures("small_files")
def test_a_second_file_is_not_replaced_unasked(model_file: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "tiny.onnx", tmp_path / "tiny.onnx.data"
    data.write_text("mine")
    with pytest.raises(OutputError, match=r"tiny\.onnx\.data exists"):
        export(model_file, out)
    assert data.read_text() == "mine"
    assert export(model_file, out, overwrite=True) == [out, data]
    OnnxFile(out).verify()


def test_what_is_no_file_is_not_replaced(model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    os.mkfifo(tmp_path / "pipe.onnx")
    for name in ("folder.onnx", "pipe.onnx"):
        with pytest.raises(OutputError, match="is not a file"):
            export(model_file, tmp_path / name, overwrite=True)
    assert stat.S_ISFIFO((tmp_path / "pipe.onnx").stat().st_mode)


@pytest.mark.usefixtures("small_files")
def test_a_link_keeps_pointing_where_it_does(model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    link, target = tmp_path / "tiny.onnx", tmp_path / "store" / "kept.onnx"
    link.symlink_to(target)
    assert export(model_file, link) == [target, target.with_name("kept.onnx.data")]
    assert link.is_symlink()
    OnnxFile(link).verify()


def test_a_file_that_appears_meanwhile_is_kept(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, compare = tmp_path / "tiny.onnx", exporting.compare

    def slow(*words: Any) -> Any:
        out.write_text("mine")
        return compare(*words)

    monkeypatch.setattr(exporting, "compare", slow)
    with pytest.raises(OutputError, match="exists"):
        export(model_file, out)
    assert out.read_text() == "mine"
    assert os.listdir(tmp_path) == ["tiny.onnx"]


@pytest.mark.parametrize("where", ["write", "sync"])
def test_a_full_disk_is_one_error_and_leaves_nothing(
    model_file: Path, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(exporting, "write_onnx" if where == "write" else "sync", fail)
    with pytest.raises(OutputError, match=r"tiny\.onnx: cannot be written \(the disk is full\)"):
        export(model_file, tmp_path / "tiny.onnx")
    assert os.listdir(tmp_path) == []


def test_files_follow_the_umask(model_file: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        export(model_file, tmp_path / "tiny.onnx")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "tiny.onnx").stat().st_mode) == 0o640


def test_a_file_that_padding_changes_is_not_kept(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check runs the file as other programs do, in a padded batch: here its masks do nothing."""
    monkeypatch.setattr("protembed.backends.onnx.graph.padding_id", lambda _: -1)
    with pytest.raises(ModelError, match="padding changes its outputs by up to"):
        export(model_file, tmp_path / "tiny.onnx")
    assert os.listdir(tmp_path) == []


def test_a_head_that_padding_changes_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protembed.backends.onnx.heads._Pen.clear", lambda self, rows: rows)
    for task in ("remote_homology", "ss3"):
        out = tmp_path / f"{task}.onnx"
        with pytest.raises(ModelError, match="padding changes its outputs by up to"):
            export_model(ModelOptions(device="cpu"), ExportOptions(out=out, tasks=(task,)))
        assert not out.exists()


def test_the_command_says_where_a_file_runs(run: Run, model_file: Path, tmp_path: Path) -> None:
    for attention, words in (("fused", "runs in onnxruntime ("), ("plain", "runs in every ONNX runtime")):
        done = run("export", model_file, "-o", f"{attention}.onnx", "--attention", attention)
        assert done.returncode == 0, done.stderr
        assert words in done.stderr


@pytest.mark.parametrize("name", ["", ".", "pipe", "empty", "gone.safetensors"])
def test_a_model_that_is_none_is_two_lines(run: Run, tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.fasta").write_text(">a\nMKT\n")
    for words in (("export", name, "-o", "x.onnx"), ("embed", "a.fasta", "-o", "x.h5", "-m", name)):
        done = run(*words)
        assert done.returncode == 2
        assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]
    assert not (tmp_path / "x.onnx").exists()


def test_what_is_written_is_digested_as_it_is_read(model_file: Path, tmp_path: Path) -> None:
    """Large and small weights, in one file and in two."""
    assert writer.INLINE == 4096
    (path,) = export(model_file, tmp_path / "tiny.onnx")
    file = OnnxFile(path)
    sizes = [tensor.size for tensor in file.tensors]
    assert min(sizes) <= writer.INLINE < max(sizes)
    file.verify()
    file.verify_graph()
