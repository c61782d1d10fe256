"""Data goes where the shell sends it, and nothing that a terminal would obey comes from a name."""

import os
import subprocess
from pathlib import Path

import pytest

from protembed.checkpoints import native as checkpoint
from protembed.cli.console import plain
from protembed.models.protein_model import ProteinModel
from tests.cli.callers import PROTEMBED, Seen, call, environment, not_ignored, type_in_terminal
from tests.conftest import ROOT, SEQUENCES, write_fasta

TRAIN = """
[task]
name = "own"
kind = "residue_classes"
[data]
path = "data"
[encoder]
model = "{model}"
[head]
hidden = 8
license = "CC0-1.0"
[train]
out = "run"
epochs = 1
overwrite = true
device = "cpu"
"""


@pytest.fixture
def place(tmp_path: Path, model_file: Path) -> Path:
    """A folder with proteins, labels and configurations."""
    write_fasta(tmp_path / "x.fasta", {name: sequence[:40] for name, sequence in SEQUENCES.items()})
    for folder, name in (("labelled", "test_CB513"), ("data", "train")):
        (tmp_path / folder).mkdir()
        sets = [name, name, name, name, "valid", "valid"] if name == "train" else [name] * 6
        labels = {f"{key} SET={kind}": "HHEEC" * 8 for key, kind in zip(SEQUENCES, sets, strict=True)}
        proteins = {f"{key} SET={kind}": SEQUENCES[key][:40] for key, kind in zip(SEQUENCES, sets, strict=True)}
        write_fasta(tmp_path / folder / "sequences.fasta", proteins)
        write_fasta(tmp_path / folder / ("labels3.fasta" if folder == "labelled" else "labels.fasta"), labels)
    (tmp_path / "train.toml").write_text(TRAIN.format(model=model_file))
    return tmp_path


def ran(*words: object, folder: Path, **options: object) -> subprocess.CompletedProcess[bytes]:
    """Run a command without any terminal."""
    given: dict[str, object] = {"capture_output": True, "env": environment(), "preexec_fn": not_ignored, **options}
    return subprocess.run([*PROTEMBED, *map(str, words)], cwd=folder, timeout=300, check=False, **given)  # type: ignore[call-overload, no-any-return]


def data_of(seen: Seen | subprocess.CompletedProcess[bytes]) -> bytes:
    """Return standard output without the line that says how long a run may take: it is measured."""
    out = seen.out if isinstance(seen, Seen) else seen.stdout
    return b"".join(line for line in out.splitlines(keepends=True) if not line.startswith(b"time\t"))


PREDICT = ("predict", "x.fasta", "--task", "ss3")
EVALUATE = ("evaluate", "--task", "ss3", "--data", "labelled")
COMMANDS = {
    "predict": PREDICT,
    "predict jsonl": (*PREDICT, "--format", "jsonl"),
    "predict fasta": (*PREDICT, "--format", "fasta"),
    "predict --task list": ("predict", "--task", "list"),
    "evaluate": EVALUATE,
    "evaluate --json": (*EVALUATE, "--json"),
    "embed --dry-run": ("embed", "x.fasta", "-o", "o.h5", "--dry-run"),
    "models": ("models",),
    "models info": ("models", "info", "protembed-6m"),
    "pretrain --dry-run": ("pretrain", "--config", ROOT / "configs" / "esm2-8m.toml", "--dry-run"),
    "train": ("train", "--config", "train.toml"),
    "--version": ("--version",),
    "--help": ("--help",),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_gets_what_a_pipe_gets_also_in_a_terminal(name: str, place: Path) -> None:
    words = COMMANDS[name]
    piped = ran(*words, folder=place)
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout
    assert b"\x1b" not in piped.stdout
    ways = [("file", "terminal"), ("pipe", "terminal"), ("file", "file")]
    for out, err in ways if name == "predict" else ways[:1]:
        typed = type_in_terminal(*words, folder=place, out=out, err=err)
        assert typed.status == 0, typed.err
        assert data_of(typed) == data_of(piped), (out, err)


@pytest.mark.parametrize("err", ["terminal", "file"])
def test_what_a_terminal_shows(place: Path, err: str) -> None:
    shown = type_in_terminal(*PREDICT, folder=place, out="terminal", err=err)
    assert shown.status == 0
    assert shown.out.decode().replace("\r\n", "\n") == ran(*PREDICT, folder=place).stdout.decode()  # and no bar in it
    drawn = type_in_terminal("models", folder=place, out="terminal", err=err)
    assert "┃" in drawn.out.decode()


def test_odd_ids_are_escaped_on_a_terminal_and_nowhere_else(place: Path) -> None:
    write_fasta(place / "x.fasta", {"a\u202eb": "MKT"})
    shown = type_in_terminal(*PREDICT, folder=place, out="terminal")
    assert shown.out.decode().splitlines()[1].startswith("a\\u202eb\tss3\t1\tM")
    piped = ran(*PREDICT, folder=place)
    assert piped.stdout.decode().splitlines()[1].startswith("a\u202eb\tss3\t1\tM")


def test_the_bar_is_on_the_terminal_and_not_in_the_data(place: Path) -> None:
    typed = type_in_terminal(*PREDICT, folder=place, out="file", err="terminal")
    assert "residues/s" in typed.err
    assert "6 records" in typed.err
    assert b"residues/s" not in typed.out
    assert "residues/s" not in type_in_terminal(*PREDICT, "-q", folder=place).err


ODD_IDS = {"Protéine_ß": "MKTAYIAKQR", "蛋白": "MKT", ":smile:": "MK", "[red]x": "MA"}


@pytest.fixture(scope="session")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What is predicted for proteins of odd names."""
    folder = tmp_path_factory.mktemp("odd")
    write_fasta(folder / "x.fasta", ODD_IDS)
    seen = ran(*PREDICT, folder=folder)
    assert "Protéine_ß\tss3\t1\tM" in seen.stdout.decode("utf-8"), seen.stderr
    return seen.stdout


@pytest.mark.parametrize(
    "changes",
    [
        {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"},
        {"NO_COLOR": "1", "TERM": None},
        {"TERM": "dumb", "COLUMNS": "20"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii", "COLUMNS": "0"},
        {"PYTHONIOENCODING": "latin-1:strict", "PYTHONUNBUFFERED": "1"},
    ],
    ids=str,
)
def test_data_is_the_same_utf8_under_every_locale_and_wish_about_colours(
    place: Path, predicted: bytes, changes: dict[str, str | None]
) -> None:
    env = environment(**changes)
    write_fasta(place / "x.fasta", ODD_IDS)
    seen = type_in_terminal(*PREDICT, folder=place, out="file", err="terminal", env=env)
    assert (seen.status, seen.out) == (0, predicted), seen.err
    assert "Traceback" not in seen.err
    wrong = type_in_terminal("models", "info", "x\u202e[b]é:smile:", folder=place, env=env)
    assert wrong.status == 2
    for part in ("Traceback", "\u202e"):
        assert part not in wrong.err
    for part in ("[b]", ":smile:"):
        assert part in wrong.err
    listed = type_in_terminal("models", folder=place, env=env)
    assert (listed.status, b"\x1b" in listed.out) == (0, False)
    assert listed.out.startswith(b"name\tparameters")


def test_ids_that_are_not_utf8_come_out_as_they_went_in(place: Path) -> None:
    (place / "x.fasta").write_bytes(b">caf\xe9\nMKTAYI\n")
    seen = ran(*PREDICT, folder=place)
    assert b"Traceback" not in seen.stderr
    if seen.returncode == 0:
        assert b"caf\xe9\tss3\t1" in seen.stdout


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain text, Protéine, 蛋白, a\u00a0b", "plain text, Protéine, 蛋白, a\u00a0b"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x1b[2J\x9b31m", r"\x1b[2J\x9b31m"),
        ("a\nerror: b\r\tc", r"a\nerror: b\r\tc"),
        ("a\x00b\x7f", r"a\x00b\x7f"),
        ("\u202egpj.exe\u2066\u200b\ufeff", r"\u202egpj.exe\u2066\u200b\ufeff"),
        ("\u2028\u2029\x85", r"\u2028\u2029\x85"),
        ("\udce9", r"\xe9"),
        ("\ud800\U000e0041", r"\ud800\U000e0041"),
    ],
)
def test_what_controls_a_terminal_is_escaped(raw: str, shown: str) -> None:
    assert plain(raw) == shown


EVIL = "\x1b]0;owned\x07\x1b[2J\u202e\n[red]"


@pytest.mark.parametrize(
    "words",
    [
        ("predict", f"{EVIL}.fasta", "--task", "ss3"),
        ("predict", "x.fasta", "--task", EVIL),
        ("predict", "x.fasta", "--task", "ss3", f"--{EVIL}"),
        ("predict", "x.fasta", "--task", "ss3", "--long", EVIL),
        ("predict", "x.fasta", "--task", "ss3", "--max-tokens", EVIL),
        ("predict", "x.fasta", "--task", "ss3", "--threads", EVIL),
        ("embed", "x.fasta", "-o", f"{EVIL}/o.h5"),
        ("embed", "x.fasta", "-o", "o.h5", "--device", EVIL),
        ("embed", "x.fasta", "-o", "o.h5", "-m", EVIL),
        ("models", "info", EVIL),
        ("train", "--config", f"{EVIL}.toml"),
        ("evaluate", "--task", "ss3", "--data", EVIL),
        ("check", f"{EVIL}.h5", "--input", "x.fasta"),
        (EVIL,),
    ],
    ids=lambda words: " ".join(words[:2]) if EVIL not in words[0] else "command",
)
def test_names_reach_the_terminal_escaped(place: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    seen = call(*words)
    assert seen.status == 2, seen.err
    assert seen.err.startswith("error: ")
    for part in ("\x1b", "\x07", "\u202e"):
        assert part not in seen.err
    assert seen.err.count("\n") <= 2  # the error and its hint: none of them made by the name
    assert "[red]" in seen.err or "--threads" in words


def test_names_in_tables_are_escaped(place: Path, model: ProteinModel) -> None:
    from dataclasses import replace

    named = ProteinModel(replace(model.card, name=EVIL, license=f"CC0 {EVIL}", source=EVIL))
    named.load_state_dict(model.state_dict())
    checkpoint.save(named, place / "evil.safetensors")
    seen = type_in_terminal("models", "info", "evil.safetensors", folder=place, out="terminal")
    assert seen.status == 0, seen.err
    assert "owned" in seen.out.decode()
    for shown in (seen.out.decode(), call("models", "info", place / "evil.safetensors").out.decode()):
        assert "\x1b]0" not in shown
        assert "\u202e" not in shown
    (place / f"evil{EVIL}.fasta").write_text(">a\nMKT\n")
    seen = call("embed", place / f"evil{EVIL}.fasta", "-m", place / "evil.safetensors", "-o", place / f"{EVIL}.h5")
    assert "\x1b]0" not in seen.err
    assert "\u202e" not in seen.err


def test_a_nul_in_a_header_is_no_traceback(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    (place / "x.fasta").write_bytes(b">a\x00b c\x00\nMKTAYI\n>a\x00b\nMK\n")
    for words in (PREDICT, ("embed", "x.fasta", "-o", "o.h5")):
        seen = call(*words)
        assert seen.status in (0, 2)
        assert "Traceback" not in seen.err
        assert "\x00" not in seen.err


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a line of bash in which `protembed` is this one."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line.replace("protembed ", " ".join(PROTEMBED) + " ")],
        cwd=folder,
        capture_output=True,
        env=environment(),
        preexec_fn=not_ignored,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("protembed predict many.fasta --task ss3 -q | head -2", 141),
        ("protembed predict many.fasta --task ss3 -q --format jsonl | head -1", 141),
        ("protembed predict many.fasta --task ss3 | (exec <&-; sleep 0.1)", 141),
        ("protembed models | (exec <&-)", 141),
        ("protembed --help | (exec <&-)", 141),
        ("protembed --version | (exec <&-)", 141),
        ("protembed predict --task list | (exec <&-)", 141),
        ("protembed models info protembed-6m | (exec <&-)", 141),
        ("protembed embed x.fasta -o o.h5 --dry-run | (exec <&-)", 141),
        ("protembed models | head -1", None),
    ],
)
def test_a_reader_that_leaves_ends_a_command_quietly(place: Path, line: str, status: int | None) -> None:
    write_fasta(place / "many.fasta", {f"p{number}": "MKTAYIAKQR" * 20 for number in range(40)})
    seen = shell(line, place)
    assert seen.returncode == status or (status is None and seen.returncode in (0, 141)), seen.stderr
    assert seen.stderr == b""


@pytest.mark.parametrize("name", ["predict", "models", "--version", "--help"])
@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
def test_standard_output_that_cannot_be_written_is_one_clear_error(place: Path, name: str, redirection: str) -> None:
    reason = {">&-": "it is closed", ">/dev/full": "No space left on device"}[redirection]
    seen = shell(f"protembed {' '.join(map(str, COMMANDS[name]))} {redirection}", place)
    assert seen.returncode == 2
    said = seen.stderr.decode()
    assert said.count("error: ") == 1
    assert f"error: standard output cannot be written ({reason})" in said
    assert "Traceback" not in said
    assert "Exception ignored" not in said


def test_an_output_never_takes_the_number_of_a_closed_stream(place: Path) -> None:
    """Libraries that write warnings to standard error would write into the file that got its number."""
    for closed in ("2>&-", "<&- >&- 2>&-"):
        seen = shell(f"protembed embed x.fasta -o o.h5 --overwrite {closed}", place)
        assert seen.returncode == 0, seen.stderr
        assert call("check", place / "o.h5", "--input", place / "x.fasta").status == 0
    predicted = shell(f"protembed {' '.join(PREDICT)} 2>&-", place)
    assert predicted.stdout == ran(*PREDICT, folder=place).stdout
    wrong = shell("protembed predict none.fasta --task ss3 2>&-", place)
    assert (wrong.returncode, wrong.stdout) == (2, b"")


def test_messages_that_cannot_be_written_stop_nothing(place: Path) -> None:
    expected = ran(*PREDICT, folder=place).stdout
    for redirection in ("2>/dev/full", "2> >(exec <&-)"):
        seen = shell(f"protembed {' '.join(PREDICT)} {redirection}", place)
        assert (seen.returncode, seen.stdout) == (0, expected)


def test_closed_standard_input_is_one_clear_error(place: Path) -> None:
    seen = shell("protembed predict - --task ss3 <&-", place)
    assert seen.returncode == 2
    assert seen.stderr.startswith(b"error: ")
    assert b"Traceback" not in seen.stderr


@pytest.mark.parametrize("folder", ["full", "missing"])
def test_a_temporary_folder_without_room_is_one_clear_error(place: Path, folder: str) -> None:
    if folder == "full":
        (place / "full").mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", place / "full"], check=False).returncode:
            pytest.skip("cannot mount a small file system here")
        (place / "full" / "filler").write_bytes(b"0" * 4096)
    try:
        given = b">a " + b"long " * 20_000 + b"\nMKTAYIAKQR\n"
        env = environment(TMPDIR=str(place / folder), HOME=str(place / folder), XDG_CACHE_HOME=str(place / folder))
        seen = ran("predict", "-", "--task", "ss3", "-q", folder=place, input=given, env=env)
        assert seen.returncode in (0, 2)
        assert b"Traceback" not in seen.stderr
        assert seen.stderr.startswith(b"error: ") == (seen.returncode == 2)
    finally:
        if folder == "full":
            subprocess.run(["umount", place / "full"], check=False)


@pytest.mark.parametrize("name", ["", ".", "..", "/", " "])
def test_a_model_that_is_no_model_is_one_clear_error(place: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for words in (("embed", "x.fasta", "-o", "o.h5", "-m", name), (*PREDICT, "-m", name), ("models", "info", name)):
        seen = call(*words)
        assert seen.status == 2, words
        assert seen.err.startswith("error: ")
        assert "Traceback" not in seen.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("embed", "x.fasta", "-m", ""), "-m: the value is empty"),
        (("embed", "x.fasta", "--out="), "--out: the value is empty"),
        (("predict", "", "--task", "ss3"), "predict: an empty argument"),
        (("",), "protembed: an empty argument"),
    ],
)
def test_an_empty_word_is_most_often_a_variable_that_is_not_set(words: tuple[str, ...], message: str) -> None:
    seen = call(*words)
    assert (seen.status, seen.err.splitlines()[0]) == (2, f"error: {message}")
    assert "variable" in seen.err


def test_completion_and_the_bare_command(place: Path) -> None:
    bare = ran(folder=place)
    assert bare.returncode == 2
    assert b"Usage: protembed" in bare.stdout + bare.stderr
    asked = environment(_PROTEMBED_COMPLETE="complete_bash", COMP_WORDS="protembed mod", COMP_CWORD="1")
    assert b"models" in ran(folder=place, env=asked).stdout


def test_help_answers_quickly(place: Path) -> None:
    began = os.times()
    ran("--help", folder=place)
    ended = os.times()
    assert ended.children_user - began.children_user < 1.5
