"""What a name stands for: a bundled model or head, a path, or a published model in the cache or to be downloaded."""

import re
from pathlib import Path

from protembed import hub
from protembed.card import ModelCard
from protembed.errors import ModelError
from protembed.onnx.file import OnnxFile
from protembed.registry import KNOWN, NOTICES, KnownModel, find_known, show_terms, similar_names
from protembed.tasks import TASKS, find_task

_REPO = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_FILES = (".safetensors", ".pt", ".pth", ".bin", ".onnx", ".h5", ".ckpt")
_UNPUBLISHED = "-"
_COLUMNS = ("name", "parameters", "layers", "width", "limit", "license", "where")


def weights_folder() -> Path:
    """Return the folder of the bundled models: inside an installed package, at the top of a source tree."""
    here = Path(__file__).parent
    installed = here / "weights"
    return installed if installed.is_dir() else here.parent / "weights"


def bundled_models() -> dict[str, Path]:
    """Return the models that are shipped, by name."""
    return {path.stem: path for path in sorted(weights_folder().glob("*.safetensors"))}


def find_model(name: str, *, offline: bool = False) -> Path:
    """Return the file or folder of a model: bundled, a path, in the cache of the hub, or downloaded into it now.

    With `offline` or HF_HUB_OFFLINE=1 nothing is downloaded. Raises ModelError, DependencyError.
    """
    if (bundled := bundled_models().get(name)) is not None:
        return bundled
    if Path(name).exists():
        return Path(name)
    known = find_known(name)
    if known is not None:
        show_terms(known.license)
    repos = _repos(name, known)
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


def heads_folder() -> Path:
    """Return the folder of the bundled heads."""
    return weights_folder() / "heads"


def bundled_head(task: str, model: str) -> Path:
    """Return where the head of a task for a model is, if it is bundled."""
    return heads_folder() / f"{model}-{task}.safetensors"


def find_head(task: str, model: ModelCard) -> Path:
    """Return the file of a head: the bundled one of a known task, or a path. Raises UsageError, ModelError."""
    if task not in TASKS:
        if Path(task).exists():
            return Path(task)
        if Path(task).suffix or "/" in task:
            raise ModelError(f"{task}: no such head", hint="Check the path; `--task list` names the tasks.")
        find_task(task)
    path = bundled_head(task, model.name)
    if not path.is_file():
        raise ModelError(
            f"no head for {task} is bundled with the model {model.name}",
            hint="Train one with `protembed train`, and use it by --task path/to/head.safetensors.",
        )
    return path


def pull_model(name: str) -> list[str]:
    """Download a model, check its files and their kind; return what to say of it, and what to copy elsewhere.

    Raises ModelError, DependencyError.
    """
    if name in bundled_models():
        return [f"{name} is bundled: it needs no download"]
    known = find_known(name)
    if known is not None:
        show_terms(known.license)
    repo = _repos(name, known)[0]
    if hub.is_offline():
        raise ModelError(
            "HF_HUB_OFFLINE=1 forbids the network", hint=f"On a machine with network: protembed pull {name}"
        )
    got = hub.download(repo)
    _read_card(got.folder)
    return [
        f"{repo}: {got.n_files} files, {got.n_bytes / 1e6:,.1f} MB, complete",
        f"here: -m {known.name if known else repo}",
        "on a machine without network, one of the two:",
        f"  copy {got.folder} with its links followed (cp -rL, rsync -aL) to any PATH, and give -m PATH",
        f"  copy {got.home} as it is into the cache there ($HF_HUB_CACHE, else ~/.cache/huggingface/hub)",
    ]


def list_models() -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of a table of all models: those that are shipped, then those that are known."""
    bundled = [{**_describe_file(path), "name": name} for name, path in bundled_models().items()]
    details = bundled + [_describe_known(known) for known in KNOWN]
    return list(_COLUMNS), [[model[column] for column in _COLUMNS] for model in details]


def describe_model(name: str) -> list[list[str]]:
    """Return what there is to say of one model, by its name or path, as pairs. Raises ModelError."""
    path = bundled_models().get(name, Path(name))
    if path.exists():
        details = _describe_file(path)
    elif (known := find_known(name)) is not None:
        details = _describe_known(known)
    else:
        raise _unknown(name)
    return [[what, value] for what, value in details.items() if value]


def _repos(name: str, known: KnownModel | None) -> tuple[str, ...]:
    """Return the repositories that may hold a model. Raises ModelError when there can be none."""
    if known is not None:
        if not known.repos:
            raise ModelError(
                f"{name} is not on the Hugging Face hub, and cannot be downloaded by name",
                hint=f"It is published at {known.published}. Download it there and give its path: -m PATH",
            )
        return known.repos
    if not _REPO.fullmatch(name) or Path(name).suffix in _FILES or Path(name).parent.is_dir():
        raise _unknown(name)
    return (name,)


def _unknown(name: str) -> ModelError:
    similar = similar_names(name, bundled_models())
    meant = f"Did you mean {' or '.join(similar)}? " if similar else ""
    return ModelError(
        f"no model is called {name!r}, and no file or folder",
        hint=f"{meant}`protembed models` lists the names; or give the path of a checkpoint.",
    )


def _read_card(path: Path) -> tuple[ModelCard, str]:
    """Read a model's card and the number of its parameters, which only a native file tells."""
    from protembed import checkpoint
    from protembed.convert.kinds import recognise
    from protembed.convert.source import Told, open_source

    if path.suffix == ".onnx":
        return OnnxFile(path).header.card, ""
    if checkpoint.is_native(path):
        return checkpoint.read_card(path), f"{checkpoint.count_parameters(path) / 1e6:,.1f} M"
    return recognise(open_source(path), Told()).card, ""


def _describe_file(path: Path) -> dict[str, str]:
    card, parameters = _read_card(path)
    return {
        "name": card.name,
        "parameters": parameters,
        "layers": str(card.encoder.n_layers),
        "width": str(card.encoder.d_model),
        "heads": str(card.encoder.n_heads),
        "limit": "none" if card.max_residues is None else f"{card.max_residues:,} residues",
        "license": card.license,
        "terms": NOTICES.get(card.license, ""),
        "where": "bundled" if path.parent == weights_folder() else "here",
        "source": card.source,
        "path": str(path),
    }


def _describe_known(known: KnownModel) -> dict[str, str]:
    cached = next((path for repo in known.repos if (path := hub.find_cached(repo))), None)
    limit = f"{known.max_residues:,} residues" if isinstance(known.max_residues, int) else known.max_residues
    return {
        "name": known.name,
        "parameters": f"{known.parameters / 1e6:,.0f} M" if known.parameters else _UNPUBLISHED,
        "layers": str(known.n_layers or _UNPUBLISHED),
        "width": str(known.d_model or _UNPUBLISHED),
        "heads": str(known.n_heads or ""),
        "limit": limit or _UNPUBLISHED,
        "license": known.license,
        "terms": NOTICES.get(known.license, ""),
        "where": "cached" if cached else "known",
        "source": known.source,
        "family": known.family,
        "other names": ", ".join(dict.fromkeys(known.names[1:])),
        "published": known.published or f"https://huggingface.co/{known.repos[0]}",
        "path": str(cached or ""),
    }
