"""The tasks that people type, one small file each: labels, metrics, how the data is read."""

from collections.abc import Mapping

from protembed.errors import UsageError
from protembed.tasks import (
    binding,
    conservation,
    contact,
    disorder,
    fluorescence,
    localisation,
    membrane,
    remote_homology,
    ss3,
    ss8,
    stability,
)
from protembed.tasks.task import Task, own_task, task_of

_MODULES = (
    ss3,
    ss8,
    contact,
    remote_homology,
    fluorescence,
    stability,
    disorder,
    localisation,
    membrane,
    conservation,
    binding,
)

TASKS: Mapping[str, Task] = {module.TASK.name: module.TASK for module in _MODULES}


def find_task(name: str) -> Task:
    """Return the task of a name. Raises UsageError, which lists them."""
    if name not in TASKS:
        raise UsageError(
            f"no task is called {name!r}",
            hint=f"Known: {', '.join(TASKS)}; or the path of a head of your own (.safetensors).",
        )
    return TASKS[name]


__all__ = ["TASKS", "Task", "find_task", "own_task", "task_of"]
