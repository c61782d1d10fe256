"""Who a process is among others: variables of torchrun and srun, their traps, and the SLURM script of examples/."""

import os
import subprocess
from pathlib import Path

import pytest

from protembed.errors import UsageError
from protembed.training.launch import PORTS, Launch, find_launch, first_host
from tests.conftest import ROOT

SCRIPT = ROOT / "examples" / "slurm_pretrain.sh"

TORCHRUN = {
    "RANK": "9",
    "WORLD_SIZE": "16",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "8",
    "MASTER_ADDR": "node3",
    "MASTER_PORT": "29500",
}

BATCH_SCRIPT = {
    "SLURM_JOB_ID": "4711",
    "SLURM_NTASKS": "7",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_JOB_NODELIST": "node[003-006]",
    "SLURM_TASKS_PER_NODE": "2(x3),1",
}
"""What a batch script sees without srun: everything looks like rank 0 of 7."""

SRUN = {
    **BATCH_SCRIPT,
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    "SLURM_STEP_NODELIST": "node[003-006]",
}


def test_torchrun() -> None:
    expected = Launch(rank=9, size=16, local_rank=1, local_size=8, address="node3", port=29500, by="torchrun")
    assert find_launch(TORCHRUN) == expected


def test_srun() -> None:
    launch = find_launch(SRUN)
    assert (launch.rank, launch.size, launch.local_rank, launch.local_size) == (5, 7, 1, 2)
    assert (launch.address, launch.by) == ("node003", "srun")
    assert launch.port in PORTS


def test_the_last_node_of_a_step_may_have_fewer_tasks() -> None:
    last = find_launch({**SRUN, "SLURM_PROCID": "6", "SLURM_LOCALID": "0", "SLURM_NODEID": "3"})
    assert (last.local_rank, last.local_size) == (0, 1)


def test_all_processes_of_a_step_meet_at_one_port_that_other_steps_and_jobs_do_not_use() -> None:
    first, other_rank, other_step, other_job = (
        find_launch({**SRUN, **change})
        for change in ({}, {"SLURM_PROCID": "4"}, {"SLURM_STEP_ID": "1"}, {"SLURM_JOB_ID": "4712"})
    )
    assert (first.address, first.port) == (other_rank.address, other_rank.port)
    assert len({first.port, other_step.port, other_job.port}) == 3


@pytest.mark.parametrize("environment", [{}, BATCH_SCRIPT, {"MASTER_ADDR": "node3", "MASTER_PORT": "29500"}])
def test_alone(environment: dict[str, str]) -> None:
    assert find_launch(environment) == Launch()


def test_an_allocation_of_many_tasks_with_a_step_of_one() -> None:
    """`srun --pty -n1 bash` in a job of 7 tasks."""
    step = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_STEP_NODELIST": "node003"}
    launch = find_launch({**BATCH_SCRIPT, "SLURM_STEP_ID": "0", **step})
    assert (launch.rank, launch.size) == (0, 1)


def test_torchrun_under_srun_is_torchrun() -> None:
    one_a_node = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_PROCID": "1"}
    assert find_launch({**SRUN, **one_a_node, **TORCHRUN}) == find_launch(TORCHRUN)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node7", "node7"),
        ("node[003-004,9]", "node003"),
        ("node[9,003-004],login1", "node9"),
        ("gpu-a[01-02]-x", "gpu-a01-x"),
        ("b2,a[1-2]", "b2"),
        ("rack[1-2]node[3-4]", "rack1node3"),
    ],
)
def test_first_host(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is not set"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({**TORCHRUN, "MASTER_PORT": ""}, "MASTER_PORT is not set"),
        ({**TORCHRUN, "LOCAL_RANK": "one"}, "LOCAL_RANK is 'one', not a number"),
        ({**TORCHRUN, "RANK": "-1"}, "RANK is '-1', not a number"),
        ({**TORCHRUN, "RANK": "16"}, "RANK is 16, but there are 16 processes"),
        ({**SRUN, "SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST is not set"),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "2(x3)"}, r"SLURM_STEP_NUM_TASKS is '2\(x3\)', not a number"),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2x3"}, "SLURM_STEP_TASKS_PER_NODE is '2x3', not of the form"),
        ({**SRUN, "SLURM_NODEID": "4"}, "SLURM_NODEID is 4"),
        ({**SRUN, "SLURM_LOCALID": "2"}, "SLURM_LOCALID is 2, but there are 2 processes"),
    ],
)
def test_mistakes_name_the_variable(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_launch(environment)


FAKE = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> "$CALLS"
[ "$(basename "$0")" = scontrol ] || exit "$SRUN_STATUS"
"""


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (130, True), (2, False), (137, False)])
def test_the_slurm_script_requeues_a_run_that_saved_itself(tmp_path: Path, status: int, requeued: bool) -> None:
    for name in ("srun", "scontrol"):
        (tmp_path / name).write_text(FAKE)
        (tmp_path / name).chmod(0o755)
    calls = tmp_path / "calls"
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CALLS": str(calls),
        "SRUN_STATUS": str(status),
        "SLURM_JOB_ID": "4711",
        "SLURM_CPUS_PER_TASK": "8",
    }
    words = ["bash", str(SCRIPT), "run with space.toml", "--set", "train.steps=9"]
    ended = subprocess.run(words, env=environment, cwd=tmp_path, check=False)
    assert ended.returncode == status
    first, *rest = calls.read_text().splitlines()
    assert first.startswith("srun ")
    assert first.endswith("protembed pretrain --config run with space.toml --set train.steps=9")
    assert "--cpus-per-task=8" in first  # since SLURM 22.05 srun does not take it from the batch script
    assert rest == (["scontrol requeue 4711"] if requeued else [])
