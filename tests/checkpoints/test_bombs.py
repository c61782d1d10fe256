"""Small files that claim to be large: refused before anything of that size is allocated or waited for."""

import json
import pickle
import resource
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from protembed.checkpoints import native as checkpoint
from protembed.checkpoints.foreign import load_foreign
from protembed.errors import InputError, ModelError
from protembed.tasks.labels.arrays import read_coordinates
from tests.conftest import GOLDEN

CPU = torch.device("cpu")
ESM = GOLDEN / "esm2_hf"


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 300 * 2**20, f"{grown / 2**20:.0f} MiB"


def load(path: Path, **told: Any) -> object:
    return load_foreign(path, device=CPU, **told)


def test_a_compressed_part_of_a_torch_file(tmp_path: Path) -> None:
    torch.save(load_file(ESM / "model.safetensors"), tmp_path / "esm.pt")
    with zipfile.ZipFile(tmp_path / "esm.pt") as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as packed:
        for part in plain.infolist():
            tail = b"\0" * 2**26 if part.filename.endswith("data.pkl") else b""
            packed.writestr(part.filename, plain.read(part) + tail, compress_type=zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.pt").stat().st_size < 2**20
    with pytest.raises(ModelError, match=r"data\.pkl' in it is compressed, which torch.save never does"):
        load(tmp_path / "bomb.pt")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_one_number_that_is_said_to_be_a_million_million(tmp_path: Path, zipped: bool) -> None:
    state = {"embed_tokens.weight": torch.zeros(1).expand(10**6, 10**6)}
    torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match="names 4,000,000,000,000 bytes of weights, and the file has"):
        load(tmp_path / "x.pt")


def test_names_nested_without_end(tmp_path: Path) -> None:
    layer: dict[str, Any] = {"x": torch.zeros(1)}
    for _ in range(60):
        layer = {"a": layer, "b": layer}
    torch.save({"model": layer}, tmp_path / "laughs.pt")
    with pytest.raises(ModelError, match="the names of its weights are nested without end"):
        load(tmp_path / "laughs.pt")


def test_a_pickle_nested_without_end(tmp_path: Path) -> None:
    data = b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
    (tmp_path / "deep.pt").write_bytes(data)
    with pytest.raises(ModelError):
        load(tmp_path / "deep.pt")


@pytest.mark.parametrize("claim", [2**31, 10**12, 2**63 - 1])
def test_a_pickle_that_claims_long_text(tmp_path: Path, claim: int) -> None:
    (tmp_path / "long.pt").write_bytes(b"\x80\x04\x8d" + struct.pack("<Q", claim) + b"abc.")
    with pytest.raises(ModelError, match="cannot be read as a torch checkpoint"):
        load(tmp_path / "long.pt")


def header(path: Path, tensors: dict[str, Any], size: int | None = None, tail: bytes = b"") -> Path:
    text = json.dumps(tensors).encode()
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + tail)
    return path


F32 = {"dtype": "F32"}


@pytest.mark.parametrize(
    ("tensors", "size"),
    [
        ({}, 10**12),
        ({}, 2**64 - 1),
        ({"a": {**F32, "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}, None),
        ({"a": {**F32, "shape": [2**40, 2**40], "data_offsets": [0, 16]}}, None),
        ({"a": {**F32, "shape": [-1], "data_offsets": [0, 4]}}, None),
        ({"a": {**F32, "shape": [2], "data_offsets": [8, 0]}}, None),
        ({n: {**F32, "shape": [2], "data_offsets": [0, 8]} for n in "ab"}, None),
        ({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, None),
        ({"a": []}, None),
    ],
    ids=["header", "header-64", "data", "overflow", "negative", "backward", "overlapping", "type", "list"],
)
def test_headers_of_safetensors_that_lie(tmp_path: Path, tensors: dict[str, Any], size: int | None) -> None:
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        load(header(tmp_path / "x.safetensors", tensors, size, b"\0" * 16))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"n_layers": 4000}, "4,000 layers, and the file holds"),
        ({"d_model": 2**17, "n_heads": 4}, "a model of this shape has .* weights, and the file holds"),
        ({"d_ff": 2**18}, "a model of this shape has .* weights, and the file holds"),
    ],
)
def test_a_card_of_a_larger_model_than_the_file_holds(
    model_file: Path, tmp_path: Path, sizes: dict[str, int], message: str
) -> None:
    data = model_file.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    fields = json.loads(data[8 : 8 + size])
    card = json.loads(fields["__metadata__"]["protembed"])
    card["encoder"] |= sizes
    fields["__metadata__"]["protembed"] = json.dumps(card)
    with pytest.raises(ModelError, match=message):
        checkpoint.load(header(tmp_path / "x.safetensors", fields, tail=data[8 + size :]), device=CPU)


def test_a_card_of_many_letters(model_file: Path, tmp_path: Path) -> None:
    data = model_file.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    fields = json.loads(data[8 : 8 + size])
    fields["__metadata__"]["protembed"] = " " * (17 * 2**20)
    with pytest.raises(ModelError, match="the model card has 17,825,792 letters, more than"):
        checkpoint.read_card(header(tmp_path / "x.safetensors", fields, tail=data[8 + size :]))


def test_a_huge_vocabulary_or_configuration_is_not_read(tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((ESM / name).read_bytes())
    with (tmp_path / "vocab.txt").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ModelError, match=r"vocab\.txt: has 1,099,511,627,776 bytes, more than"):
        load(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ModelError, match=r"config\.json: has 1,099,511,627,776 bytes, more than"):
        load(tmp_path)


def test_an_index_that_names_files_elsewhere(tmp_path: Path) -> None:
    for outside in ("../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": outside}}))
        with pytest.raises(ModelError, match="which does not lie beside it"):
            load(tmp_path)


def test_coordinates_that_fill_the_memory(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", ids=np.zeros(2**27, dtype="S1"))
    with pytest.raises(InputError, match="more than 100 times the file's"):
        list(read_coordinates(tmp_path / "bomb.npz", "test"))
    np.save(tmp_path / "array.npz", np.zeros(3))
    (tmp_path / "array.npz.npy").rename(tmp_path / "array.npz")
    with pytest.raises(InputError, match="cannot be read as proteins with coordinates"):
        list(read_coordinates(tmp_path / "array.npz", "test"))
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(InputError, match="cannot be read as proteins with coordinates"):
        list(read_coordinates(tmp_path / "pickle.npz", "test"))
