"""Several processes: the same losses as one, whatever happens to them on the way."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import protembed
from protembed.models import packing as layouts
from protembed.models.packing import Packed
from protembed.models.protein_model import ProteinModel
from protembed.training import parallel
from protembed.training.checkpoints import list_checkpoints
from protembed.training.corpus.packing import Cursor
from protembed.training.launch import Launch, end_with_launcher
from protembed.training.parallel import World, fit_block, mixed_precision
from protembed.training.pretrain.config import ModelSection, ParallelSection, load_config, make_card
from protembed.training.pretrain.pretrain import Trainer
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


def test_two_runs_in_one_folder_the_second_is_refused_before_it_touches_anything(config: Path) -> None:
    runs = start(config, "one", 1, "train.steps=400")
    wait_for_step(config, "one", 11)
    folder = config.parent / "one"
    left = folder / ".step_00000099.tmp"
    left.mkdir()
    said = finish(start(config, "one", 1), (2,))
    assert "another run is working on this run" in said[0]
    assert left.exists(), "what a running process writes is left alone"
    runs[0].send_signal(signal.SIGTERM)
    finish(runs, (130,))
    done = len(losses(config, "one"))
    finish(start(config, "one", 1, f"train.steps={done + 2}"))
    assert not left.exists(), "what a killed save left is removed at the next start"
    assert not list(folder.parent.glob(".one.lock"))


def test_a_killed_torchrun_leaves_no_workers(config: Path) -> None:
    """kill -9 of the launcher: its processes save the run and end."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += ["-m", "protembed", "pretrain", "--config", str(config), "--set", f"train.out={config.parent / 'run'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = config.parent / "output"
    with (
        output.open("w") as file,
        subprocess.Popen(
            [*words, "--set", "train.steps=100000"], env=environment, stderr=file, stdout=file, start_new_session=True
        ) as launcher,
    ):
        wait_for_step(config, "run", 11)
        workers = children(launcher.pid)
        assert len(workers) == 2
        launcher.kill()
    for _ in range(600):
        if not any(Path(f"/proc/{worker}").exists() for worker in workers):
            break
        time.sleep(0.1)
    else:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        raise AssertionError(output.read_text())
    said = output.read_text()
    assert "told to end: saved" in said
    assert said.count("torchrun is gone") <= 1  # the other rank may notice first, and end both before this one looks
    done = len(losses(config, "run"))
    assert list_checkpoints(config.parent / "run")[-1].name == f"step_{done:08d}"


def children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(word) for word in text.split()]


def test_the_launcher_is_only_watched_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    for launch in (Launch(), Launch(by="srun", size=2, local_size=2)):
        end_with_launcher(launch)
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("device", "precision", "dtype"),
    [
        ("cuda", "bfloat16", torch.bfloat16),
        ("cuda", "float32", None),
        ("cpu", "bfloat16", None),
        ("cpu", "float32", None),
    ],
)
def test_shards_are_gathered_in_the_precision_of_the_run(
    device: str, precision: Any, dtype: torch.dtype | None
) -> None:
    policy = mixed_precision(device, precision)
    assert (policy.param_dtype, policy.reduce_dtype) == (dtype, torch.float32)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_hands_its_precision_to_the_shards(config: Path, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(parallel, "_shard", lambda *words: seen.append(words[-1]))
    settings = [f"train.precision={precision}", "parallel.strategy=fsdp", f"train.out={config.parent / 'run'}"]
    Trainer(load_config(config, settings), World(launch=Launch(), device=torch.device("cpu")))
    assert seen == [precision]


def dense(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *_: object) -> Tensor:
    """Stand in for the fused attention of a GPU."""
    own = torch.searchsorted(offsets, torch.arange(len(q), dtype=torch.int32), right=True)
    mask = own[:, None] == own[None, :]
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return attended.squeeze(0).transpose(0, 1)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_compiled_and_recomputed_blocks_have_the_gradients_of_plain_ones(
    checkpointing: bool, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layouts, "_is_fusable", lambda q: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", dense)
    card = make_card(ModelSection(name="x", d_model=16, n_layers=2, n_heads=2, d_ff=32, qk_norm=True))
    tokens, layout = torch.arange(24) % 20 + 4, Packed([10, 14])
    gradients, counter = [], CompileCounter()
    for section in (ParallelSection(), ParallelSection(compile=compiled, activation_checkpointing=checkpointing)):
        torch._dynamo.reset()
        model = ProteinModel(card)
        model.initialise(0)
        for block in model.encoder.blocks:
            fit_block(block, section, backend=counter)
        for _ in range(2):
            model.zero_grad()
            model(tokens, layout).square().sum().backward()  # type: ignore[no-untyped-call]
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert (counter.frame_count > 0) is compiled
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


class WideNorm(torch.nn.Module):
    """A norm that returns float32, as CUDA's autocast makes it do."""

    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x.float())
        return normed


def test_norms_of_queries_and_keys_keep_what_fused_attention_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    card = make_card(ModelSection(name="x", d_model=16, n_layers=1, n_heads=2, d_ff=32, qk_norm=True))
    model = ProteinModel(card)
    model.initialise(0)
    attention = model.encoder.blocks[0].attention
    attention.q_norm, attention.k_norm = WideNorm(attention.q_norm), WideNorm(attention.k_norm)
    seen: list[torch.dtype] = []
    true = Packed.attend

    def attend(self: Packed, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.extend((q.dtype, k.dtype, v.dtype))
        return true(self, q, k, v)

    monkeypatch.setattr(Packed, "attend", attend)
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.arange(12) + 4, Packed([12]))
    assert seen == [torch.bfloat16] * 3


WAITS = ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__", "nonzero")


def test_a_step_waits_for_the_device_once(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would make the host wait for a GPU is counted; a size that is not told would, too."""
    settings = ["train.accumulate=3", "model.stem=3", f"train.out={config.parent / 'run'}", "train.optimizer=muon"]
    trainer = Trainer(load_config(config, settings), World(launch=Launch(), device=torch.device("cpu")))
    step = next(trainer.steps.after(Cursor(), 0))
    waited: list[str] = []
    for name in WAITS:
        true = getattr(Tensor, name)

        def counting(self: Tensor, *words: Any, name: str = name, true: Any = true, **named: Any) -> Any:
            waited.append(name)
            return true(self, *words, **named)

        monkeypatch.setattr(Tensor, name, counting)
    repeated = Tensor.repeat_interleave

    def told(self: Tensor, *words: Any, output_size: int, **named: Any) -> Tensor:
        return repeated(self, *words, output_size=output_size, **named)

    monkeypatch.setattr(Tensor, "repeat_interleave", told)
    trainer._update(step, 1e-3, False)
    assert waited == ["tolist"]


def test_sums_of_processes_are_made_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str] = []
    monkeypatch.setattr("torch.distributed.all_reduce", lambda numbers: devices.append(numbers.device.type))
    world = World(launch=Launch(size=2), device=torch.device("meta"))
    assert world.sum(1.5, 2) == [1.5, 2.0]
    assert devices == ["cpu"]


def test_validation_is_the_same_for_any_number_of_processes(config: Path) -> None:
    """The same weights, scored by 1 and by 2 processes, and by shards: one figure."""
    finish(start(config, "alone", 1, "train.steps=2", "train.evaluate_proteins=6", "train.accumulate=2"))
    found = []
    for name, words in (("two", ()), ("shards", ("parallel.strategy=fsdp",))):
        subprocess.run(["cp", "-r", config.parent / "alone", config.parent / name], check=True)
        settings = ["train.steps=3", "train.evaluate_proteins=6", "train.learning_rate=1e-12", *words]
        finish(start(config, name, 2, *settings))
        found.append(evaluated(config, name)[-1])
    before = evaluated(config, "alone")[-1]
    assert found == pytest.approx([before, before], rel=1e-4)


def evaluated(config: Path, run: str) -> list[float]:
    lines = [json.loads(line) for line in (config.parent / run / "metrics.jsonl").read_text().splitlines()]
    return [line["valid_perplexity"] for line in lines if line["valid_perplexity"] is not None]
