"""What `train` writes and says, `predict` accepts: through the real command line."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from protembed.checkpoints import native as checkpoint
from protembed.checkpoints.head_arrays import read_head_card
from protembed.checkpoints.head_files import load_head
from protembed.cli.app import run as run_command
from protembed.errors import OutputError
from protembed.models.protein_model import ProteinModel
from protembed.training.finetune.config import load_task_config
from protembed.training.finetune.trainer import HeadTrainer
from tests.conftest import GOLDEN, ROOT, Run, write_fasta
from tests.training.test_finetune import after_hydrophobic, proteins, write_residues

CASES = ROOT / "tests" / "tasks" / "labels" / "cases"


def test_classes_with_spaces_in_their_names_are_trained_whole(run: Run, model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "in.fasta").write_bytes((CASES / "labels_with_spaces.fasta").read_bytes())
    done = run("train", "--config", CASES / "task.toml", "--set", f"encoder.model={model_file}")
    assert done.returncode == 0, done.stderr
    assert "4 classes in the data: Cell membrane, Cell wall, Endoplasmic lumen, Endoplasmic ret" in done.stderr
    head = tmp_path / "run" / "head.safetensors"
    labels = ("Cell membrane", "Cell wall", "Endoplasmic lumen", "Endoplasmic reticulum")
    assert read_head_card(head).labels == labels
    found = run("predict", "in.fasta", "-m", model_file, "--task", head)
    assert found.returncode == 0, found.stderr
    rows = [line.split("\t") for line in found.stdout.splitlines()]
    assert {len(row) for row in rows} == {7}
    assert {row[5] for row in rows[1:]} <= set(labels)


TOML = """
[task]
name = "own"
kind = "residue_classes"
[data]
path = "data"
[head]
hidden = 16
[train]
epochs = 1
"""


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A folder to work in: a configuration, and labelled proteins."""
    made = {name: (sequence, after_hydrophobic(sequence)) for name, sequence in proteins(24).items()}
    write_residues(tmp_path / "data", made, ("train", "train", "val", "test"))
    (tmp_path / "task.toml").write_text(TOML)
    write_fasta(tmp_path / "new.fasta", {f"N{n}": s for n, s in enumerate(proteins(3, seed=9).values())})
    return tmp_path


FOREIGN = {
    "esm2": GOLDEN / "esm2_hf",
    "proteinlm": GOLDEN / "proteinlm_megatron",
    "tape": GOLDEN / "tape_remote_homology",
}

COMBINATIONS = [
    ("native", ()),
    ("native", ('train.precision="bfloat16"',)),
    ("native", ('train.precision="bfloat16"', 'encoder.mode="lora"', 'encoder.store_dtype="float16"')),
    ("native16", ('train.precision="bfloat16"',)),
    ("esm2", ()),
    ("esm2", ('train.precision="bfloat16"', 'head.store_dtype="float16"')),
    ("esm2", ('encoder.mode="lora"',)),
    ("esm2", ('encoder.mode="full"', 'encoder.store_dtype="float16"')),
    ("proteinlm", ('train.precision="bfloat16"',)),
    ("tape", ('train.precision="bfloat16"',)),
    ("native", ('head.reads="residue"', 'train.precision="bfloat16"')),
]


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(labelled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Call the command line in this process: it starts in no time; exit status, standard output and error."""
    monkeypatch.chdir(labelled)

    def call(*words: object) -> tuple[int, str, str]:
        status = run_command([*map(str, words)])
        return status, *capsys.readouterr()

    return call


@pytest.mark.parametrize(("encoder", "changes"), COMBINATIONS)
def test_the_command_that_train_prints_is_accepted_in_every_dtype(
    labelled: Path, command: Command, model: ProteinModel, encoder: str, changes: tuple[str, ...]
) -> None:
    place = FOREIGN.get(encoder, labelled / "my encoder.safetensors")
    if encoder.startswith("native"):
        checkpoint.save(model, place, dtype=torch.float16 if encoder == "native16" else torch.float32)
    settings = [f"encoder.model={place}", "train.out=my run", 'data.test=["test"]', *changes]
    code, _, said = command("train", "--config", "task.toml", *(w for setting in settings for w in ("--set", setting)))
    assert code == 0, said
    (line,) = (line for line in said.splitlines() if "ready for protembed predict" in line)
    words = shlex.split(line.partition("ready for protembed ")[2])
    tables = []
    for dtype in ("auto", "float32", "bfloat16"):
        code, table, said = command(*words, "new.fasta", "--dtype", dtype)
        assert code == 0, said
        tables.append(table)
    assert tables[0] == tables[1]
    assert len(tables[2].splitlines()) == len(tables[0].splitlines()) > 60
    code, text, said = command("evaluate", "--data", "data", "--split", "test", "--json", *words[1:])
    assert code == 0, said
    head = labelled / words[words.index("--task") + 1]
    told = load_head(head, device=torch.device("cpu"))[1].training["test_accuracy"]
    measured = json.loads(text)["metrics"]["accuracy"]["value"]
    assert measured == pytest.approx(float(told), abs=0.03 if "bfloat16" in str(changes) else 2e-5)


LAUNCHED = {
    "torchrun": {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "29500",
    },
    "srun": {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_STEP_NODELIST": "node1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_ID": "0",
    },
}


@pytest.mark.parametrize("launcher", LAUNCHED)
def test_several_processes_do_not_train_the_same_head(
    labelled: Path, command: Command, monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    for name, value in LAUNCHED[launcher].items():
        monkeypatch.setenv(name, value)
    code, _, said = command("train", "--config", "task.toml", "--set", "train.out=run")
    assert (code, f"error: a head is trained by one process, and {launcher} started 2" in said) == (2, True)
    assert not (labelled / "run").exists()


def test_one_process_under_torchrun_trains(
    labelled: Path, command: Command, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in LAUNCHED["torchrun"].items():
        monkeypatch.setenv(name, value.replace("2", "1") if "SIZE" in name else value.replace("1", "0"))
    settings = (f"encoder.model={model_file}", "train.out=run")
    code, _, said = command("train", "--config", "task.toml", *(w for s in settings for w in ("--set", s)))
    assert code == 0, said


def test_a_second_run_in_one_folder_is_refused_before_it_touches_anything(
    labelled: Path, command: Command, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(labelled)
    settings = (f"encoder.model={model_file}", "train.out=run", "train.overwrite=true", "train.epochs=2")
    config = load_task_config(Path("task.toml"), settings)
    first, late = HeadTrainer(config), HeadTrainer(config)
    reports = first.run()
    next(reports)
    before = {path: path.read_bytes() for path in (labelled / "run").rglob("*") if path.is_file()}
    code, _, said = command("train", "--config", "task.toml", *(w for s in settings for w in ("--set", s)))
    assert (code, "another run is working on this run folder (process" in said) == (2, True)
    with pytest.raises(OutputError, match="another run is working on this run folder"):
        next(late.run())
    assert {path: path.read_bytes() for path in (labelled / "run").rglob("*") if path.is_file()} == before
    assert len(list(reports)) == 1
    assert first.result.is_file()
    assert [path.name for path in labelled.iterdir() if "lock" in path.name] == []
    code, _, said = command("train", "--config", "task.toml", *(w for s in settings for w in ("--set", s)))
    assert code == 0, said


def test_a_run_that_was_made_before_another_ended_replaces_nothing(labelled: Path, model_file: Path) -> None:
    changes = (f"encoder.model={model_file}", f"train.out={labelled}/run", f"data.path={labelled}/data")
    config = load_task_config(labelled / "task.toml", changes)
    first, second = HeadTrainer(config), HeadTrainer(config)
    assert len(list(first.run())) == 1
    before = first.result.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        list(second.run())
    assert first.result.read_bytes() == before
