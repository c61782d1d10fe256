"""All models that can be named: what there is to say of each, and bringing one here."""

from pathlib import Path

from protembed.backends.onnx.file import OnnxFile
from protembed.checkpoints import hub
from protembed.checkpoints.find import bundled_models, repos_of, unknown_model, weights_folder
from protembed.checkpoints.registry import KNOWN, NOTICES, KnownModel, find_known, show_terms
from protembed.errors import ModelError
from protembed.models.config import ModelCard

_UNPUBLISHED = "-"
_COLUMNS = ("name", "parameters", "layers", "width", "limit", "license", "where")


def pull_model(name: str) -> list[str]:
    """Download a model, check its files and their kind; return what to say of it, and what to copy elsewhere.

    Raises ModelError, DependencyError.
    """
    if name in bundled_models():
        return [f"{name} is bundled: it needs no download"]
    known = find_known(name)
    if known is not None:
        show_terms(known.license)
    repo = repos_of(name, known)[0]
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
    if name.strip() and (path.is_file() or path.is_dir()):
        details = _describe_file(path)
    elif (known := find_known(name)) is not None:
        details = _describe_known(known)
    else:
        raise unknown_model(name)
    return [[what, value] for what, value in details.items() if value]


def _read_card(path: Path) -> tuple[ModelCard, str]:
    """Read a model's card and the number of its parameters, which only a native file tells."""
    from protembed.checkpoints import native as checkpoint
    from protembed.checkpoints.foreign.checkpoint import Told, open_source
    from protembed.checkpoints.foreign.families import recognise

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
