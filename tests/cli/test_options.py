"""Options: a value that makes no sense is one clear error, and every option that a message names exists."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from protembed.cli import app
from tests.cli.callers import call
from tests.conftest import ROOT, write_fasta

PACKAGE = ROOT / "protembed"
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
OTHER_PROGRAMS = {
    "mmseqs": {"--format-output"},
    "pip": {"--upgrade"},
    "sbatch": {"--array"},
    "srun": {"--gpus-per-task"},
    "torchrun": {"--nproc-per-node"},
}


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, set[str]]]:
    """Yield every command and its options."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        words = {word for given in command.params for word in (*given.opts, *given.secondary_opts)}
        yield " ".join((*path, name)), words | {"--help"}


OPTIONS = dict(commands())


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the string literals of a file, but docstrings; of one with values in it the words around them."""
    tree = ast.parse(path.read_text())
    inner: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inner.add(id(node.value))  # a docstring
        elif isinstance(node, ast.List):
            inner |= {id(part) for part in node.elts}  # words of a command line, of which a message is made elsewhere
        elif isinstance(node, ast.JoinedStr):
            parts = [part for part in node.values if isinstance(part, ast.Constant)]
            inner |= {id(part) for part in parts}
            yield node.lineno, "".join(str(part.value) for part in parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.lineno, node.value


def missing(text: str, known: set[str]) -> list[str]:
    """Return the options that a text names and a command lacks, unless the text names who has them."""
    others = {word for name, words in OTHER_PROGRAMS.items() if re.search(rf"\b{name}\b", text) for word in words}
    for command, words in OPTIONS.items():
        if re.search(rf"\b{command}(ed)?\b", text, re.IGNORECASE):
            others |= words
    return [word for word in OPTION.findall(text) if word not in known | others]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_option_that_a_message_names_exists(path: Path) -> None:
    every = {"--version"}.union(*OPTIONS.values())
    wrong = [(line, word) for line, text in texts(path) for word in missing(text, every)]
    assert not wrong


SAID_BY = {
    "predict": (
        *("backends/load.py", "backends/torch_backend.py", "backends/onnx/backend.py", "backends/onnx/session.py"),
        *("checkpoints", "inference/predict.py", "inference/predict_run.py", "inference/run.py", "models"),
        *("outputs/file_writer.py", "outputs/plots.py", "outputs/text.py", "outputs/hdf5.py", "sequences"),
    ),
    "evaluate": (
        *("backends/torch_backend.py", "backends/onnx/backend.py", "backends/onnx/session.py"),
        *("checkpoints", "inference/evaluate.py", "inference/predict.py", "inference/report.py", "models", "tasks"),
    ),
    "embed": (
        *("backends/load.py", "backends/torch_backend.py", "backends/onnx/backend.py", "backends/onnx/session.py"),
        *("checkpoints/native.py", "inference/embed.py", "inference/embed_run.py"),
        *("inference/run.py", "models", "outputs/file_writer.py", "outputs/hdf5.py", "sequences"),
    ),
    "contacts": ("inference/contacts.py", "outputs/file_writer.py", "outputs/plots.py", "sequences/survey.py"),
    "train": ("training/finetune", "tasks"),
    "pretrain": ("training/pretrain", "training/parallel.py", "training/launch.py", "training/config.py"),
    "prepare": ("training/corpus",),
}
"""The files whose messages a command can print."""


@pytest.mark.parametrize("command", SAID_BY)
def test_a_command_is_not_told_of_options_that_it_lacks(command: str) -> None:
    wrong = []
    for place in SAID_BY[command]:
        files = sorted((PACKAGE / place).rglob("*.py")) if (PACKAGE / place).is_dir() else [PACKAGE / place]
        for file in files:
            found = [(line, word) for line, text in texts(file) for word in missing(text, OPTIONS[command])]
            wrong += [f"{file.relative_to(PACKAGE)}:{line} {word}" for line, word in found]
    assert not wrong


WHOLE = ("0", "-5", "nan", "1e3", "1.5", "", "x", "٣", "²", "9" * 5000)
EMBED = ("embed", "x.fasta", "-o", "o.h5")
PREDICT = ("predict", "x.fasta", "--task", "ss3", "-o", "o.tsv")
EVALUATE = ("evaluate", "--task", "ss3", "--data", "x.fasta")
DEVICES = ("tpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "cuda:9")
PRETRAIN = ("pretrain", "--config", ROOT / "configs" / "esm2-8m.toml", "--dry-run")
BAD: tuple[tuple[object, ...], ...] = (
    *((*command, "--max-tokens", value) for command in (EMBED, PREDICT, EVALUATE) for value in WHOLE),
    *((*command, "--max-length", value) for command in (EMBED, PREDICT) for value in WHOLE),
    *((*command, "--threads", value) for command in (EMBED, PREDICT, EVALUATE) for value in WHOLE),
    *((*command, "--device", value) for command in (EMBED, PREDICT, EVALUATE) for value in DEVICES),
    *((*command, "--dtype", "float8") for command in (EMBED, PREDICT, EVALUATE)),
    *((*command, "--n-heads", value) for command in (EMBED, PREDICT) for value in ("0", "-3", "x")),
    *((*EMBED, "--layer", value) for value in ("99", "-99", "x", "1e3")),
    *(
        (*EMBED, "--shard", value)
        for value in ("3/2", "0/2", "1/0", "a", "1/", "-1/2", "1/2/3", "slurm", "1/" + "9" * 20)
    ),
    *((*EMBED[:2], "-o", value) for value in ("", "no/o.h5", "o.csv")),
    *((*PREDICT[:4], "-o", value) for value in ("", "no/o.tsv")),
    *(("predict", "x.fasta", "--task", value) for value in ("", ",", "ss3,ss3", "ss4", "none.safetensors", "x.fasta")),
    *((*PREDICT[:1], value, *PREDICT[2:]) for value in ("none.fasta", "/")),
    *((*EMBED[:1], value, *EMBED[2:]) for value in ("none.fasta", "/")),
    (*EVALUATE, "--where", "A"),
    (*EVALUATE, "--longest", "0"),
    (*EVALUATE, "--tape-batch", "0"),
    ("evaluate", "--task", "ss3", "--data", "none"),
    ("contacts", "x.fasta", "-o", "c.h5"),
    ("contacts", "x.fasta", "-o", "c.h5", "--threads", "0"),
    ("contacts", "x.fasta", "-o", "c.h5", "--device", "tpu"),
    ("export", "none"),
    ("export", "protembed-6m", "-o", "no/e.onnx"),
    ("export", "protembed-6m", "-o", "e.onnx", "--task", "ss4"),
    ("convert", "none", "-o", "c.safetensors"),
    ("models", "info", "none"),
    ("models", "none"),
    ("pull", "no_such"),
    ("merge", "m.h5", "none.h5"),
    ("merge", "m.h5", "x.fasta"),
    ("check", "x.fasta", "--input", "x.fasta"),
    ("check", "none.h5", "--input", "x.fasta"),
    ("prepare", "x.fasta", "-o", "c", "--workers", "0"),
    ("prepare", "x.fasta", "-o", "c", "--min-residues", "0"),
    ("prepare", "x.fasta", "-o", "c", "--seed", "-1"),
    *(("prepare", "x.fasta", "-o", "c", "--valid-share", value) for value in ("2", "nan", "-1")),
    ("prepare", "none", "-o", "c"),
    *((command, "--config", value) for command in ("train", "pretrain") for value in ("none.toml", ".", "x.fasta")),
    *(
        (*PRETRAIN, "--set", value)
        for value in ("a", "a=", "=1", "train.steps=0", "train.steps=nan", "train.nothing=1", "model.d_model=0")
    ),
    (*PRETRAIN[:-1], "--processes", "2"),
    (*PRETRAIN, "--processes", "0"),
    ("predict", "--bogus"),
    ("bogus",),
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_fasta(tmp_path / "x.fasta", {"a": "MKTAYIAKQR"})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", BAD, ids=lambda words: " ".join(map(str, words))[:80].replace("/", "_"))
def test_a_bad_value_is_one_clear_error(place: Path, words: tuple[object, ...]) -> None:
    seen = call(*words)
    assert seen.status == 2, seen
    assert seen.out == b""
    assert "Traceback" not in seen.err
    assert seen.err.count("error: ") == 1
    assert seen.err.startswith("error: ")
    assert sorted(path.name for path in place.iterdir()) == ["x.fasta"]
