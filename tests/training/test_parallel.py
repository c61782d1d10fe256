"""Several processes: the same losses as one, whatever happens to them on the way."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

import protembed
from protembed.training.checkpoints import list_checkpoints
from tests.cli.callers import not_ignored
from tests.conftest import ROOT, SEQUENCES, write_fasta

CORPUS = ROOT.parent / "shared" / "data" / "corpus" / "valid.fasta.xz"

TOML = """
[model]
name = "tiny"
d_model = 32
n_layers = 2
n_heads = 4
d_ff = 64
[data]
corpus = "{folder}/corpus"
train = ["{source}"]
valid = ["{source}"]
max_residues = 100
[train]
out = "run"
steps = 60
batch_tokens = 300
learning_rate = 1e-2
warmup_steps = 5
device = "cpu"
threads = 1
log_every = 1
evaluate_every = 30
evaluate_proteins = 3
checkpoint_every = 10
"""

Runs = list[subprocess.Popen[str]]


def write_config(folder: Path, source: Path) -> Path:
    path = folder / "run.toml"
    path.write_text(TOML.format(folder=folder, source=source))
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path, write_fasta(tmp_path / "train.fasta", SEQUENCES))


def start(config: Path, run: str, processes: int, *settings: str) -> Runs:
    """Start the processes of a run as torchrun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "protembed", "pretrain", "--config", str(config)]
    for setting in (f"train.out={config.parent / run}", *settings):
        words += ["--set", setting]
    together: Mapping[str, object] = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_PORT": port}
    runs = []
    for rank in range(processes):
        mine = {**together, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1"} if processes > 1 else {}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in mine.items()}}
        runs.append(subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=not_ignored))
    return runs


def finish(runs: Runs, statuses: Sequence[int] = (0, 0)) -> list[str]:
    """Wait for all processes and return what each said."""
    said = [run.communicate(timeout=100)[1] for run in runs]
    assert [run.returncode for run in runs] == list(statuses[: len(runs)]), said
    return said


def losses(config: Path, run: str) -> list[float]:
    lines = [json.loads(line) for line in (config.parent / run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


def wait_for_step(config: Path, run: str, step: int) -> None:
    """Return when a run has reported a step."""
    path = config.parent / run / "metrics.jsonl"
    for _ in range(6000):
        if path.exists() and path.read_text().count("\n") >= step:
            return
        time.sleep(0.01)
    raise AssertionError("the run does not come forward")


def disturb_and_resume(config: Path) -> None:
    """Kill one of two processes, go on with two and with one, and compare with a run that nothing happened to."""
    finish(start(config, "alone", 1, "train.accumulate=2"))
    expected = losses(config, "alone")
    assert len(expected) == 60
    assert np.mean(expected[-5:]) < np.mean(expected[:5])
    runs = start(config, "killed", 2)
    wait_for_step(config, "killed", 25)
    runs[1].kill()
    said = finish(runs, (1, -signal.SIGKILL))
    assert said[0].count("error:") == 1
    assert "lost another process" in said[0]
    assert "Traceback" not in said[0]
    assert list_checkpoints(config.parent / "killed")[-1].name in {f"step_{step:08d}" for step in range(10, 60, 10)}
    subprocess.run(["cp", "-r", config.parent / "killed", config.parent / "other"], check=True)
    finish(start(config, "killed", 2))
    finish(start(config, "other", 1, "train.accumulate=2"))
    np.testing.assert_allclose(losses(config, "killed"), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(losses(config, "other"), expected, rtol=0, atol=1e-5)


def test_a_killed_process_costs_nothing_but_time(config: Path) -> None:
    disturb_and_resume(config)


@pytest.mark.skipif(not CORPUS.exists(), reason=f"{CORPUS} is not there")
def test_the_same_on_a_thousand_natural_proteins(tmp_path: Path) -> None:
    disturb_and_resume(write_config(tmp_path, CORPUS))


def test_shards_equal_whole_models_and_resume_as_such(config: Path) -> None:
    """fully_shard on two processes, stopped by SIGTERM, then whole models on two: the losses of an undisturbed run."""
    finish(start(config, "whole", 2))
    expected = losses(config, "whole")
    runs = start(config, "sharded", 2, "parallel.strategy=fsdp", "parallel.activation_checkpointing=true")
    wait_for_step(config, "sharded", 15)
    runs[0].send_signal(signal.SIGTERM)
    said = finish(runs, (130, 130))
    assert "saved at step" in said[0]
    done = len(losses(config, "sharded"))
    assert list_checkpoints(config.parent / "sharded")[-1].name == f"step_{done:08d}"
    np.testing.assert_allclose(losses(config, "sharded"), expected[:done], rtol=0, atol=1e-5)
    finish(start(config, "sharded", 2))
    np.testing.assert_allclose(losses(config, "sharded"), expected, rtol=0, atol=1e-5)
    assert protembed.load(config.parent / "sharded" / "model.safetensors").card.name == "tiny"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_run_that_is_told_to_end_saves_itself(config: Path, number: signal.Signals) -> None:
    runs = start(config, "told", 1)
    wait_for_step(config, "told", 12)
    runs[0].send_signal(number)
    (said,) = finish(runs, (130,))
    done = len(losses(config, "told"))
    assert f"saved at step {done}" in said
    assert list_checkpoints(config.parent / "told")[-1].name == f"step_{done:08d}"


def test_an_error_that_all_processes_make_is_said_once(config: Path) -> None:
    said = finish(start(config, "run", 2, "model.n_heads=5"), (2, 2))
    assert "".join(said).count("error:") == 1
    assert "not a multiple of n_heads" in "".join(said)


def test_an_error_of_one_process_ends_all(config: Path) -> None:
    """Only the main process reads weights: the other one must not wait for it, and nobody shows a traceback."""
    said = finish(start(config, "run", 2, f"train.start_from={config.parent}/absent.safetensors"), (2, 1))
    assert "absent.safetensors: cannot be read" in said[0]
    assert "Traceback" not in "".join(said)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_run_that_is_told_to_end_before_its_first_step(config: Path, number: signal.Signals) -> None:
    """The status is the one that examples/slurm_pretrain.sh requeues."""
    runs = start(config, "told", 1)
    for _ in range(6000):
        if (config.parent / "told").exists():
            break
        time.sleep(0.01)
    runs[0].send_signal(number)
    finish(runs, (130,))
