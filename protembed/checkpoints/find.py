"""What a name stands for: a bundled model or head, a path, or a published model in the cache or to be downloaded."""

import re
from pathlib import Path

from protembed.checkpoints import hub
from protembed.checkpoints.registry import KnownModel, find_known, show_terms, similar_names
from protembed.errors import ModelError
from protembed.models.config import ModelCard
from protembed.tasks import TASKS, find_task

_REPO = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_FILES = (".safetensors", ".pt", ".pth", ".bin", ".onnx", ".h5", ".ckpt")


def weights_folder() -> Path:
    """Return the folder of the bundled models: inside an installed package, at the top of a source tree."""
    here = Path(__file__).parent.parent
    installed = here / "weights"
    return installed if installed.is_dir() else here.parent / "weights"


def bundled_models() -> dict[str, Path]:
    """Return the models that are shipped, by name."""
    return {path.stem: path for path in sorted(weights_folder().glob("*.safetensors"))}


def find_model(name: str, *, offline: bool = False) -> Path:
    """Return the file or folder of a model: bundled, a path, in the cache of the hub, or downloaded into it now.

    With `offline` or HF_HUB_OFFLINE=1 nothing is downloaded. Raises ModelError, DependencyError.
    """
    if not name.strip():
        raise ModelError(
            "no model is named", hint="`protembed models` lists the names; or give the path of a checkpoint."
        )
    if (bundled := bundled_models().get(name)) is not None:
        return bundled
    if (path := _existing(name)) is not None:
        return path
    known = find_known(name)
    if known is not None:
        show_terms(known.license)
    repos = repos_of(name, known)
    for repo in repos:
        if (cached := hub.find_cached(repo)) is not None:
            return cached
    if offline or hub.is_offline():
        raise ModelError(
            f"{name} is not in the cache of the Hugging Face hub, and --offline or HF_HUB_OFFLINE=1 forbids a download",
            hint=f"On a machine with network: protembed pull {known.name if known else name}. Then copy "
            f"{hub.repo_folder(repos[0]).name} from its cache into {hub.cache_folder()}, or the snapshot folder that "
            "pull names to any place, and give its path: -m PATH",
        )
    return hub.download(repos[0]).folder


def _existing(name: str) -> Path | None:
    """Return the file or folder of a name, if there is one; `.` and the like under their full name."""
    try:
        path = Path(name)
        return (path if path.name else path.resolve()) if path.exists() else None
    except (OSError, ValueError):  # too long for a path, or with a NUL in it
        return None


def heads_folder() -> Path:
    """Return the folder of the bundled heads."""
    return weights_folder() / "heads"


def bundled_head(task: str, model: str) -> Path:
    """Return where the head of a task for a model is, if it is bundled."""
    return heads_folder() / f"{model}-{task}.safetensors"


def find_head(task: str, model: ModelCard) -> Path:
    """Return the file of a head: the bundled one of a known task, or a path. Raises UsageError, ModelError."""
    if task not in TASKS:
        if (path := _existing(task)) is not None:
            return path
        if Path(task).suffix or "/" in task:
            raise ModelError(f"{task}: no such head", hint="Check the path; `--task list` names the tasks.")
        find_task(task)
    path = bundled_head(task, model.name)
    if _existing(str(path)) is None:
        raise ModelError(
            f"no head for {task} is bundled with the model {model.name}",
            hint="Train one with `protembed train`, and use it by --task path/to/head.safetensors.",
        )
    return path


def repos_of(name: str, known: KnownModel | None) -> tuple[str, ...]:
    """Return the repositories that may hold a model. Raises ModelError when there can be none."""
    if known is not None:
        if not known.repos:
            raise ModelError(
                f"{name} is not on the Hugging Face hub, and cannot be downloaded by name",
                hint=f"It is published at {known.published}. Download it there and give its path: -m PATH",
            )
        return known.repos
    if len(name) > 200 or not _REPO.fullmatch(name) or Path(name).suffix in _FILES or Path(name).parent.is_dir():
        raise unknown_model(name)
    return (name,)


def unknown_model(name: str) -> ModelError:
    similar = similar_names(name, bundled_models())
    meant = f"Did you mean {' or '.join(similar)}? " if similar else ""
    return ModelError(
        f"no model is called {name!r}, and no file or folder",
        hint=f"{meant}`protembed models` lists the names; or give the path of a checkpoint.",
    )
