"""Damaged and hostile files of every kind: they load, or they are one clear error, in little time and memory.

The mutations are drawn with a fixed seed: bytes flipped, cut, repeated, and values of JSON replaced by nonsense.
"""

import json
import os
import random
import resource
import shutil
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from protembed.checkpoints import hub
from protembed.checkpoints import native as checkpoint
from protembed.checkpoints.foreign import load_foreign
from protembed.checkpoints.foreign.heads import load_foreign_head
from protembed.checkpoints.head_arrays import read_head
from protembed.checkpoints.head_files import load_head, save_head
from protembed.errors import ProtembedError
from protembed.models.head_config import HeadCard
from protembed.models.heads.registry import make_head
from protembed.models.heads.run import design_head
from protembed.models.protein_model import ProteinModel
from tests.conftest import GOLDEN

CPU = torch.device("cpu")
ROUNDS = int(os.environ.get("PROTEMBED_FUZZ_ROUNDS", "150"))
MOST_BYTES = 600 * 2**20
"""What the whole of one test may add to the peak: a file of a few kB that is read a hundred times needs no more."""

NONSENSE: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3, 10**9, 2**63, -(2**70), 10**400, 0.5, -0.0, 1e308, 5e-324),
    *("", "x", "\x00", "\x1b[2J", "a\tb", "a\nb", "é" * 300, "../../etc/passwd", "rotary", "float32"),
    *([], {}, [[]], [None], {"": {}}, [0] * 50, {"a": [1]}, ["A"] * 40),
]
RAW = ["NaN", "Infinity", "1" * 5000, "[" * 100_000, '{"a":' * 50_000, "1e999", '"\\ud800"', "nul", ""]

Load = Callable[[Path], object]


def mutated(data: bytes, dice: random.Random) -> bytes:
    """Flip, cut, repeat or overwrite some bytes, more often near the beginning, where headers are."""
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 8))):
        at = min(int(dice.expovariate(1 / (len(changed) / 6 + 1))), max(0, len(changed) - 1))
        match dice.randrange(6):
            case 0:
                changed[at : at + 1] = bytes([dice.randrange(256)])
            case 1:
                del changed[at:]
            case 2:
                del changed[at : at + dice.randrange(1, 20)]
            case 3:
                changed[at:at] = changed[at : at + dice.randrange(1, 60)]
            case 4:
                changed[at : at + 8] = struct.pack("<Q", dice.choice((0, 1, 2**31, 2**40, 2**63, 10**12)))
            case 5:
                changed[at : at + 4] = dice.choice((b"\xff" * 4, b"\0" * 4, b"9999", b"-111"))
        if not changed:
            break
    return bytes(changed)


def with_nonsense(values: Any, dice: random.Random) -> str:
    """Return JSON in which one value, somewhere, is nonsense, or a key is gone or new."""
    values = json.loads(json.dumps(values))
    place, path = values, []
    while isinstance(place, dict | list) and place and (not path or dice.random() < 0.7):
        key = dice.choice(list(place)) if isinstance(place, dict) else dice.randrange(len(place))
        path.append((place, key))
        place = place[key]
    if not path:
        return json.dumps(dice.choice(NONSENSE))
    inside, key = path[-1]
    match dice.randrange(8):
        case 0 if isinstance(inside, dict):
            del inside[key]
        case 1 if isinstance(inside, dict):
            inside["novelty"] = dice.choice(NONSENSE)
        case 2:
            inside[key] = "@@raw@@"
            return json.dumps(values).replace('"@@raw@@"', dice.choice(RAW), 1)
        case _:
            inside[key] = dice.choice(NONSENSE)
    return json.dumps(values)


def attack(load: Load, write: Callable[[random.Random], Path], seed: int, rounds: int = ROUNDS) -> None:
    """Load mutated files; nothing but our own errors may come out, whatever else the files do."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = longest = 0
    for number in range(rounds):
        path = write(random.Random(seed * 100_000 + number))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                load(path)
            except ProtembedError as error:
                refused += 1
                longest = max(longest, len(str(error)))
            except BaseException as error:
                raise AssertionError(f"round {number}: {type(error).__name__}: {error}"[:500]) from error
    assert longest < 1500
    assert refused > rounds // 10, "mutations that change nothing test nothing"
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_BYTES


def load_any(path: Path) -> object:
    return load_foreign(path, device=CPU)


@pytest.fixture(scope="module")
def head_file(model: ProteinModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    head = make_head(design_head(model.card, "residue_classes", outputs=3))
    card = HeadCard(task="ss3", config=head.config, encoder="tiny", encoder_sha256="0" * 64, labels=tuple("HEC"))
    path = tmp_path_factory.mktemp("head") / "head.safetensors"
    save_head(head, card, path)
    return path


def in_header(source: Path, key: str, target: Path) -> Callable[[random.Random], Path]:
    """Put nonsense into the card in the header of a .safetensors file; its digest stays right."""
    data = source.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    card = json.loads(header["__metadata__"][key])

    def write(dice: random.Random) -> Path:
        header["__metadata__"][key] = with_nonsense(card, dice)
        new = json.dumps(header).encode()
        target.write_bytes(struct.pack("<Q", len(new)) + new + data[8 + size :])
        return target

    return write


def in_bytes(source: Path, target: Path) -> Callable[[random.Random], Path]:
    data = source.read_bytes()

    def write(dice: random.Random) -> Path:
        target.write_bytes(mutated(data, dice))
        return target

    return write


def beside(folder: Path, name: str, text: Callable[[random.Random], bytes]) -> Callable[[random.Random], Path]:
    """Write one file of a folder anew, and return the folder."""

    def write(dice: random.Random) -> Path:
        (folder / name).write_bytes(text(dice))
        return folder

    return write


@pytest.fixture
def esm(tmp_path: Path) -> Path:
    """A small ESM folder with a head."""
    return Path(shutil.copytree(GOLDEN / "esm2_token_classification", tmp_path / "esm"))


def test_native_checkpoints(model_file: Path, tmp_path: Path) -> None:
    load: Load = lambda path: checkpoint.load(path, device=CPU)  # noqa: E731
    attack(load, in_header(model_file, "protembed", tmp_path / "m.safetensors"), 1)
    attack(load, in_bytes(model_file, tmp_path / "n.safetensors"), 2)


def test_heads(head_file: Path, tmp_path: Path) -> None:
    def load(path: Path) -> object:
        read_head(path)
        return load_head(path, device=CPU)

    attack(load, in_header(head_file, "protembed_head", tmp_path / "h.safetensors"), 3)
    attack(load, in_bytes(head_file, tmp_path / "i.safetensors"), 4)


def test_foreign_safetensors(esm: Path) -> None:
    data = (esm / "model.safetensors").read_bytes()
    attack(load_any, beside(esm, "model.safetensors", lambda dice: mutated(data, dice)), 5)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_torch_files(esm: Path, zipped: bool) -> None:
    state = load_file(esm / "model.safetensors")
    (esm / "model.safetensors").unlink()
    torch.save(state, esm / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    data = (esm / "pytorch_model.bin").read_bytes()
    attack(load_any, beside(esm, "pytorch_model.bin", lambda dice: mutated(data, dice)), 6 + zipped)


BESIDE: dict[str, Any] = {
    "config.json": None,
    "tokenizer.json": {"model": {"vocab": {}}, "added_tokens": [{"content": "<x>", "id": 40}]},
    "model.safetensors.index.json": {
        "metadata": {},
        "weight_map": {"a": "model.safetensors", "b": "model.safetensors"},
    },
    "adapter_config.json": {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"x": 4},
        "modules_to_save": ["y"],
        "base_model_name_or_path": "z",
    },
}


@pytest.mark.parametrize("name", BESIDE)
def test_json_beside_the_weights(esm: Path, name: str) -> None:
    tokens = (esm / "vocab.txt").read_text().split()
    whole = json.loads((esm / "config.json").read_text()) if name == "config.json" else BESIDE[name]
    if name == "tokenizer.json":
        (esm / "vocab.txt").unlink()
        whole = {**whole, "model": {"vocab": {token: row for row, token in enumerate(tokens)}}}
    if name == "adapter_config.json":
        query = "base_model.model.esm.encoder.layer.0.attention.self.query"
        matrices = {f"{query}.lora_A.weight": torch.ones(4, 40), f"{query}.lora_B.weight": torch.ones(40, 4)}
        save_file(matrices, esm / "adapter_model.safetensors")

    def load(path: Path) -> object:
        model = load_foreign(path, device=CPU)
        return load_foreign_head(path, model.card, device=CPU)

    attack(load, beside(esm, name, lambda dice: with_nonsense(whole, dice).encode(errors="replace")), 8)


def test_vocabularies(esm: Path) -> None:
    data = (esm / "vocab.txt").read_bytes()
    attack(load_any, beside(esm, "vocab.txt", lambda dice: mutated(data, dice)), 9)


def test_the_cache_of_the_hub(esm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    home = hub.repo_folder("a/b")
    (home / "refs").mkdir(parents=True)
    snapshot = home / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir()
    shutil.move(esm, snapshot)
    whole = {"weight_map": {"a": "model-1.safetensors"}}
    (snapshot / "model.safetensors").rename(snapshot / "model-1.safetensors")
    for number in range(ROUNDS):
        dice = random.Random(number)
        (home / "refs" / "main").write_bytes(mutated(b"0" * 40, dice) if dice.random() < 0.5 else b"0" * 40)
        (snapshot / "model.safetensors.index.json").write_text(with_nonsense(whole, dice), errors="replace")
        found = hub.find_cached("a/b")
        assert found in (None, snapshot)


def test_megatron_files(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "proteinlm_megatron", tmp_path / "proteinlm"))
    name = "release/mp_rank_00/model_optim_rng.pt"
    data = (folder / name).read_bytes()
    attack(load_any, beside(folder, name, lambda dice: mutated(data, dice)), 10, rounds=60)
