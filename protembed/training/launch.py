"""Detect rank and number of processes from the environment (torchrun, srun or a single process)."""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from protembed.errors import UsageError

PORTS = range(12_000, 32_000)
"""Where processes under srun meet: below the ports that Linux hands out by itself (from 32,768)."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One process of a run: its number among all and on its machine, and where rank 0 waits for the others."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    address: str = ""
    port: int = 0
    by: Literal["alone", "torchrun", "srun"] = "alone"


def find_launch(environment: Mapping[str, str]) -> Launch:
    """Read from environment variables how this process was started.

    torchrun goes before srun, for it may run under srun. SLURM_NTASKS and SLURM_PROCID prove nothing: a batch script
    and salloc's shell have them too, where one process runs alone; only a step of srun has SLURM_STEP_NUM_TASKS.
    Raises UsageError naming a variable that is missing or makes no sense.
    Source: torchrun's and srun's manuals, environment variables.

    >>> find_launch({"SLURM_NTASKS": "16", "SLURM_PROCID": "0"}).by
    'alone'
    """
    if any(environment.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        launch = _by_torchrun(environment)
        names = ("RANK", "LOCAL_RANK")
    elif environment.get("SLURM_STEP_NUM_TASKS"):
        launch = _by_srun(environment)
        names = ("SLURM_PROCID", "SLURM_LOCALID")
    else:
        return Launch()
    for name, rank, size in zip(names, (launch.rank, launch.local_rank), (launch.size, launch.local_size), strict=True):
        if rank >= size:
            raise UsageError(f"{name} is {rank}, but there are {size} processes, counted from 0", hint=_HINT)
    return launch


def _by_torchrun(environment: Mapping[str, str]) -> Launch:
    return Launch(
        rank=_number(environment, "RANK"),
        size=_number(environment, "WORLD_SIZE"),
        local_rank=_number(environment, "LOCAL_RANK"),
        local_size=_number(environment, "LOCAL_WORLD_SIZE"),
        address=_text(environment, "MASTER_ADDR"),
        port=_number(environment, "MASTER_PORT"),
        by="torchrun",
    )


def _by_srun(environment: Mapping[str, str]) -> Launch:
    tasks = _tasks_per_node(_text(environment, "SLURM_STEP_TASKS_PER_NODE"))
    node = _number(environment, "SLURM_NODEID")
    if node >= len(tasks):
        raise UsageError(f"SLURM_NODEID is {node}, but SLURM_STEP_TASKS_PER_NODE tells of {len(tasks)}", hint=_HINT)
    # Two steps of a job and two jobs on a node must not meet at one port.
    place = 7 * _number(environment, "SLURM_JOB_ID") + _number(environment, "SLURM_STEP_ID")
    return Launch(
        rank=_number(environment, "SLURM_PROCID"),
        size=_number(environment, "SLURM_STEP_NUM_TASKS"),
        local_rank=_number(environment, "SLURM_LOCALID"),
        local_size=tasks[node],
        address=first_host(_text(environment, "SLURM_STEP_NODELIST")),
        port=PORTS[place % len(PORTS)],
        by="srun",
    )


def first_host(nodes: str) -> str:
    """Return the first name in a SLURM list of nodes.

    >>> first_host("node[003-004,9],login1")
    'node003'
    """
    first = re.split(r",(?![^\[]*\])", nodes)[0]  # at the first comma that is not in brackets
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def _tasks_per_node(text: str) -> list[int]:
    """Spell out SLURM's short form: `2(x3),1` is three nodes with two tasks and one with one."""
    tasks: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]+)(?:\(x([0-9]+)\))?", part)
        if match is None:
            raise UsageError(f"SLURM_STEP_TASKS_PER_NODE is {text!r}, not of the form 2(x3),1", hint=_HINT)
        tasks += [int(match[1])] * int(match[2] or 1)
    return tasks


def _text(environment: Mapping[str, str], name: str) -> str:
    if not environment.get(name):
        raise UsageError(f"{name} is not set, though other variables of its launcher are", hint=_HINT)
    return environment[name]


def _number(environment: Mapping[str, str], name: str) -> int:
    text = _text(environment, name)
    if not re.fullmatch("[0-9]+", text):
        raise UsageError(f"{name} is {text!r}, not a number", hint=_HINT)
    return int(text)


def end_with_launcher(launch: Launch, *, every: float = 1.0, grace: float = 600.0) -> None:
    """End this process when torchrun, its parent, is gone (kill -9, out of memory): it would train on unattended.

    It is told by SIGTERM, so that the run saves itself first; after `grace` seconds it ends in any case. srun's
    processes are ended by SLURM.
    """
    if launch.by != "torchrun":
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        if launch.local_rank == 0:
            print("torchrun is gone: saving and ending", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace)
        os._exit(130)

    threading.Thread(target=watch, daemon=True, name="launcher").start()


_HINT = (
    "Start with torchrun or srun, which set all of them; to train with one process, unset RANK, WORLD_SIZE, "
    "LOCAL_RANK, LOCAL_WORLD_SIZE and SLURM_STEP_NUM_TASKS."
)
