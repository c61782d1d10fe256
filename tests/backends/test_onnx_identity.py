"""An ONNX file stands in for a checkpoint only if it holds its very weights, and nobody else can have put it there."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import protembed
from protembed.backends import load as loading
from protembed.backends.load import ModelOptions, open_backend
from protembed.backends.onnx import cache as caching
from protembed.backends.onnx.cache import export_place, find_exported
from protembed.backends.onnx.export import ExportOptions, arrays_of, export_model
from protembed.backends.onnx.file import OnnxFile
from protembed.backends.onnx.graph import build_graph
from protembed.backends.onnx.identity import digest_of_files
from protembed.backends.onnx.writer import write_onnx
from protembed.checkpoints import native as checkpoint
from protembed.checkpoints.foreign import load_foreign
from protembed.errors import ModelError, OutputError, UsageError
from protembed.models.protein_model import ProteinModel
from tests.conftest import GOLDEN

Change = Callable[[Path], None]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("PROTEMBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "has_gpu", lambda: False)
    return tmp_path / "cache"


def options_of(path: Path) -> ModelOptions:
    return ModelOptions(model=str(path), device="cpu")


def export(path: Path, **how: Any) -> Path:
    return export_model(options_of(path), ExportOptions(**how)).files[0]


def runtime_of(path: Path) -> str:
    return open_backend(options_of(path)).description.partition(",")[0]


def vector_of(path: Path, backend: str = "auto") -> Any:
    return next(protembed.load(path, device="cpu", backend=backend).embed(["MKTAYIAKQR"]))[1]


def with_same_state(path: Path, change: Change) -> None:
    """Change a file; size, times and, where the system allows, inode are as they were: as in a layer of a container."""
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    now = path.stat()
    assert (now.st_size, now.st_mtime_ns, now.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)


def flip_last_layer(path: Path) -> None:
    """Change one number of the weights, at the end of the file, in place."""
    with path.open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        byte = file.read(1)
        file.seek(-2, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))


def other_weights(model: ProteinModel, seed: int = 3) -> ProteinModel:
    other = ProteinModel(model.card)
    other.initialise(seed)
    return other


def test_other_weights_of_equal_path_size_and_time_give_their_own_vectors(
    model: ProteinModel, model_file: Path, tmp_path: Path
) -> None:
    native = tmp_path / "model.safetensors"
    shutil.copy(model_file, native)
    export(native)
    assert runtime_of(native) == "onnx"
    old = vector_of(native)
    checkpoint.save(other_weights(model), tmp_path / "other.safetensors")
    assert (tmp_path / "other.safetensors").stat().st_size == native.stat().st_size
    with_same_state(native, lambda path: path.write_bytes((tmp_path / "other.safetensors").read_bytes()) and None)
    assert runtime_of(native) == "torch"
    assert np.abs(vector_of(native) - old).max() > 0.1


@pytest.mark.parametrize("name", ["esm2_hf", "proteinlm_megatron"])
def test_one_changed_bit_of_a_foreign_checkpoint_is_seen(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    shutil.copytree(GOLDEN / name, folder)
    export(folder)
    assert runtime_of(folder) == "onnx"
    weights = max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    digest = digest_of_files(folder)
    with_same_state(weights, flip_last_layer)
    assert digest_of_files(folder) != digest
    assert find_exported(folder) is None


def test_every_file_that_torch_reads_of_a_foreign_checkpoint_counts(tmp_path: Path) -> None:
    """What changes the function lies beside the weights, too: config.json, the vocabulary, the choice of iteration."""
    for name in ("esm2_hf", "proteinlm_megatron"):
        folder = tmp_path / name
        shutil.copytree(GOLDEN / name, folder)
        digest = digest_of_files(folder)
        for file in sorted(
            file for file in folder.rglob("*") if file.is_file() and file.suffix not in (".npz", ".txt")
        ):
            content = file.read_bytes()
            file.write_bytes(content + b" ")
            assert digest_of_files(folder) != digest, file
            file.write_bytes(content)
        assert digest_of_files(folder) == digest
        (folder / "README.md").write_text("notes do not count")
        (folder / ".cache").mkdir()
        (folder / ".cache" / "state").write_text("nor do hidden files")
        assert digest_of_files(folder) == digest
        (folder / "adapter_config.json").write_text("{}")
        assert digest_of_files(folder) != digest
    (folder / "adapter_config.json").unlink()
    digest = digest_of_files(folder)
    (folder / "config.json").write_text("beside the iterations")
    assert digest_of_files(folder) != digest


def test_a_file_counts_with_those_that_say_what_it_is(tmp_path: Path) -> None:
    for file in (GOLDEN / "esm2_hf").iterdir():
        shutil.copy(file, tmp_path)
    weights = tmp_path / "model.safetensors"
    digest = digest_of_files(weights)
    (tmp_path / "sequences.fasta").write_text(">a\nMK\n")
    assert digest_of_files(weights) == digest
    (tmp_path / "vocab.txt").write_text("A\n")
    assert digest_of_files(weights) != digest


def test_of_several_iterations_the_one_that_is_read_counts(tmp_path: Path) -> None:
    for number, text in ((1, "old"), (2, "new")):
        folder = tmp_path / f"iter_{number:07}" / "mp_rank_00"
        folder.mkdir(parents=True)
        (folder / "model_optim_rng.pt").write_text(text)
    tracker = tmp_path / "latest_checkpointed_iteration.txt"
    tracker.write_text("1\n")
    first = digest_of_files(tmp_path)
    assert first == digest_of_files(tmp_path / "iter_0000001")
    assert first == digest_of_files(tmp_path / "iter_0000001" / "mp_rank_00" / "model_optim_rng.pt")
    tracker.write_text("2\n")
    assert digest_of_files(tmp_path) == digest_of_files(tmp_path / "iter_0000002") != first


def lie(path: Path, model: ProteinModel, claimed: ProteinModel, **how: Any) -> Path:
    """Write an ONNX file of one model's weights, right in itself, whose card is another model's."""
    graph = build_graph(model.card, arrays_of(model), attention="fused", weights="float32")
    write_onnx(path, graph, claimed.card, attention="fused", weights="float32", **how)
    OnnxFile(path).verify()
    return path


def load_native(path: Path) -> ProteinModel:
    return checkpoint.load(path, device=torch.device("cpu"), dtype=torch.float32)


def test_a_file_beside_a_checkpoint_that_only_says_it_holds_its_weights(
    model: ProteinModel, model_file: Path, tmp_path: Path
) -> None:
    native = tmp_path / "model.safetensors"
    shutil.copy(model_file, native)
    loaded = load_native(native)
    assert runtime_of(native) == "torch"
    lie(tmp_path / "model.onnx", loaded, loaded)
    assert runtime_of(native) == "onnx", "this one does hold them"
    lie(tmp_path / "model.onnx", other_weights(model), loaded)
    assert runtime_of(native) == "torch"
    (tmp_path / "model.onnx").unlink()
    place, _ = export_place(native)
    place.parent.mkdir(parents=True)
    lie(place, other_weights(model), loaded)
    assert runtime_of(native) == "torch"


def test_one_changed_row_beside_a_checkpoint_is_seen(model_file: Path, tmp_path: Path) -> None:
    native = tmp_path / "model.safetensors"
    shutil.copy(model_file, native)
    loaded = load_native(native)
    for name in ("encoder.blocks.1.attention.qkv.weight", "encoder.embedding.weight", "mlm_head.dense.weight"):
        other = load_native(native)
        with torch.no_grad():
            other.state_dict()[name][-1, -1] += 0.5
        lie(tmp_path / "model.onnx", other, loaded)
        assert find_exported(native) is None, name


def test_weights_are_compared_to_their_last_number(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read in pieces, of other sizes on either side."""
    monkeypatch.setattr("protembed.backends.onnx.identity._PIECE", 64)
    monkeypatch.setattr("protembed.backends.onnx.file._PIECE", 400)
    native = tmp_path / "model.safetensors"
    shutil.copy(model_file, native)
    loaded, other = load_native(native), load_native(native)
    lie(tmp_path / "model.onnx", loaded, loaded)
    assert find_exported(native) is not None
    with torch.no_grad():
        other.state_dict()["encoder.embedding.weight"][-1, -1] += 0.5
    lie(tmp_path / "model.onnx", other, loaded)
    assert find_exported(native) is None


def test_a_changed_constant_of_the_graph_is_seen(model_file: Path, tmp_path: Path) -> None:
    native, path = tmp_path / "model.safetensors", tmp_path / "model.onnx"
    shutil.copy(model_file, native)
    loaded = load_native(native)
    lie(path, loaded, loaded)
    changed = onnx.load(path)
    constant = next(entry for entry in changed.graph.initializer if entry.name == "rotary.frequencies.0")
    data = bytearray(constant.raw_data)
    data[3] ^= 1
    constant.raw_data = bytes(data)
    path.write_bytes(changed.SerializeToString())
    assert find_exported(native) is None


@pytest.mark.skipif("os.geteuid() != 0", reason="only root gives files away")
def test_files_of_whoever_owns_the_checkpoint_are_used(model_file: Path, tmp_path: Path) -> None:
    """As in a folder of models that a laboratory shares: who owns it could change the checkpoint as well."""
    folder = tmp_path / "shared"
    folder.mkdir()
    native = folder / "model.safetensors"
    shutil.copy(model_file, native)
    export(native, out=folder / "model.onnx")
    for path in (folder, native, folder / "model.onnx"):
        os.chown(path, 54321, 54321)
    assert runtime_of(native) == "onnx"
    os.chown(folder / "model.onnx", 54322, 54321)
    with pytest.warns(UserWarning, match="belongs to another user"):
        assert runtime_of(native) == "torch"


def test_a_card_that_differs_is_another_model(model_file: Path, tmp_path: Path) -> None:
    native = tmp_path / "model.safetensors"
    shutil.copy(model_file, native)
    loaded = load_native(native)
    tokens = list(loaded.card.alphabet.tokens)
    tokens[4:6] = tokens[5], tokens[4]
    loaded.card = replace(loaded.card, alphabet=replace(loaded.card.alphabet, tokens=tuple(tokens)))
    lie(tmp_path / "model.onnx", loaded, loaded)
    assert find_exported(native) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_of_every_type_are_compared(model: ProteinModel, dtype: torch.dtype, tmp_path: Path) -> None:
    native = tmp_path / "model.safetensors"
    checkpoint.save(model, native, dtype=dtype)
    export(native, out=tmp_path / "model.onnx")
    assert runtime_of(native) == "onnx"
    np.testing.assert_allclose(vector_of(native), vector_of(native, "torch"), atol=1e-5)


def test_a_checkpoint_whose_header_lies_is_refused_by_both_runtimes(model_file: Path, tmp_path: Path) -> None:
    native = tmp_path / "model.safetensors"
    shutil.copy(model_file, native)
    export(native)
    with safe_open(native, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(native)
    tensors["encoder.final_norm.weight"] += 1
    save_file(tensors, native, metadata)  # the header keeps the old sha256
    for backend in ("auto", "onnx", "torch"):
        with pytest.raises(ModelError, match="do not match their checksum"):
            protembed.load(native, backend=backend, device="cpu")


@pytest.mark.parametrize("how", ["float32", "float16", "int8", "plain"])
def test_a_file_names_the_weights_as_the_checkpoint_stores_them(model: ProteinModel, tmp_path: Path, how: str) -> None:
    native = tmp_path / "model.safetensors"
    card = checkpoint.save(model, native, dtype=torch.bfloat16)
    options: dict[str, Any] = {"attention": "plain"} if how == "plain" else {"weights": how}
    path = export(native, out=tmp_path / "model.onnx", **options)
    assert OnnxFile(path).header.card.sha256 == card.sha256
    folder = GOLDEN / "esm2_hf"
    path = export(folder, out=tmp_path / "foreign.onnx", **options)
    stored = load_foreign(folder, device=torch.device("cpu")).card.sha256
    assert OnnxFile(path).header.card.sha256 == stored
    assert OnnxFile(path).header.source == digest_of_files(folder)


@pytest.mark.parametrize("place", ["file", "folder", "cache"])
def test_what_others_may_write_is_not_used(place: str, model_file: Path, cache: Path) -> None:
    path = export(model_file)
    assert runtime_of(model_file) == "onnx"
    where = {"file": path, "folder": path.parent, "cache": cache}[place]
    where.chmod(0o777)
    with pytest.warns(UserWarning, match=rf"is not used: others may write to {where} \(mode 777\)"):
        assert runtime_of(model_file) == "torch"
    where.chmod(0o755 if where.is_dir() else 0o644)
    assert runtime_of(model_file) == "onnx"


def test_a_cache_that_others_may_write_to_is_not_filled(model_file: Path, cache: Path) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    with pytest.raises(OutputError, match="is not safe as a cache") as caught:
        export(model_file)
    assert "PROTEMBED_CACHE" in caught.value.hint
    cache.chmod(0o755)
    before = os.umask(0)
    try:
        path = export(model_file)
    finally:
        os.umask(before)
    assert runtime_of(model_file) == "onnx", "whatever the umask, nobody else may write to it"
    assert path.stat().st_mode & 0o022 == path.parent.stat().st_mode & 0o022 == 0


def test_a_link_into_a_folder_of_others_is_not_used(model_file: Path, tmp_path: Path) -> None:
    shutil.copy(model_file, tmp_path / "model.safetensors")
    shared = tmp_path / "shared"
    shared.mkdir()
    export(model_file, out=shared / "model.onnx")
    (tmp_path / "model.onnx").symlink_to(shared / "model.onnx")
    assert runtime_of(tmp_path / "model.safetensors") == "onnx"
    shared.chmod(0o777)
    with pytest.warns(UserWarning, match="is not used: others may write to"):
        assert runtime_of(tmp_path / "model.safetensors") == "torch"


def test_a_second_file_that_others_may_write_is_not_used(model_file: Path, tmp_path: Path) -> None:
    native = tmp_path / "model.safetensors"
    shutil.copy(model_file, native)
    loaded = load_native(native)
    lie(tmp_path / "model.onnx", loaded, loaded, largest=1000)
    assert runtime_of(native) == "onnx"
    (tmp_path / "model.onnx.data").chmod(0o666)
    with pytest.warns(UserWarning, match=r"model\.onnx\.data is not used: others may write to"):
        assert runtime_of(native) == "torch"


def test_a_damaged_file_of_the_cache_is_not_used() -> None:
    path = export(GOLDEN / "esm2_hf")
    assert runtime_of(GOLDEN / "esm2_hf") == "onnx"
    place = max(OnnxFile(path).tensors, key=lambda tensor: tensor.size).offset
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"\1\2\3")
    with pytest.warns(UserWarning, match="do not match their checksum: it is not used"):
        assert runtime_of(GOLDEN / "esm2_hf") == "torch"


def test_a_file_that_is_named_is_used_wherever_it_lies(model_file: Path, tmp_path: Path) -> None:
    path = export(model_file, out=tmp_path / "model.onnx")
    path.chmod(0o666)
    assert runtime_of(path) == "onnx"


def test_the_cache_takes_nothing_that_was_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the cache holds exports of what a checkpoint says itself"):
        export_model(ModelOptions(model=str(tmp_path), device="cpu", variant="trained"), ExportOptions())


def test_a_checkpoint_that_changes_while_it_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from protembed.backends.onnx import export as exporting

    folder = tmp_path / "esm2_hf"
    shutil.copytree(GOLDEN / "esm2_hf", folder)
    compare = exporting.compare

    def changed(*args: Any) -> Any:
        (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
        return compare(*args)

    monkeypatch.setattr(exporting, "compare", changed)
    with pytest.raises(ModelError, match="was changed while it was exported"):
        export(folder, out=tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_a_checkpoint_that_changes_is_not_mixed_with_its_old_file(
    model: ProteinModel, model_file: Path, tmp_path: Path
) -> None:
    native = tmp_path / "model.safetensors"
    shutil.copy(model_file, native)
    export(native)
    loaded = protembed.load(native, device="cpu")
    assert "onnx" in repr(loaded)
    checkpoint.save(other_weights(model), native)
    with pytest.raises(ModelError, match="was changed while it was in use"):
        loaded.attentions(["MKT"])  # what only torch computes


def test_a_file_that_is_replaced_during_a_run_is_noticed(model: ProteinModel, model_file: Path, tmp_path: Path) -> None:
    path = export(model_file, out=tmp_path / "model.onnx")
    loaded = protembed.load(path, device="cpu")
    loaded.embed_residues(["MKT"])
    lie(tmp_path / "new.onnx", other_weights(model), load_native(model_file))
    os.replace(tmp_path / "new.onnx", path)
    with pytest.raises(ModelError, match="was changed while it was in use"):
        loaded.embed_residues(["MKT"], layer=1)  # opens another part of the file


def test_the_default_model_parses_its_file_once(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(model_file)
    opened = []

    class Counted(OnnxFile):
        def __init__(self, path: Path) -> None:
            opened.append(path)
            super().__init__(path)

    monkeypatch.setattr(caching, "OnnxFile", Counted)
    monkeypatch.setattr("protembed.backends.onnx.backend.OnnxFile", Counted)
    vector_of(model_file)
    assert len(opened) == 1


def test_nothing_is_read_where_nothing_was_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> str:
        raise AssertionError("a checkpoint was read for nothing")

    monkeypatch.setattr(caching, "digest_of_files", fail)
    monkeypatch.setattr("protembed.backends.onnx.identity.NativeFile.verify", fail)
    assert find_exported(GOLDEN / "esm2_hf") is None
    (tmp_path / "cache" / "onnx").mkdir(parents=True)
    (tmp_path / "cache" / "onnx" / f"{'0' * 16}-{'1' * 64}.onnx").write_text("of another checkpoint")
    assert find_exported(GOLDEN / "esm2_hf") is None


def test_the_bundled_file_stands_in_for_the_bundled_model() -> None:
    backend = open_backend(ModelOptions(device="cpu"))
    assert backend.computed_with == "onnx, cpu, float32"
    path = loading.find_source(ModelOptions()).with_suffix(".onnx")
    texts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(texts["protembed"])["card"]["sha256"] == backend.card.sha256
