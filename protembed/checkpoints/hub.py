"""The cache of the Hugging Face hub: finding a model in it, without the hub's package, and downloading one into it."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protembed.errors import DependencyError, ModelError
from protembed.schema import read_object

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

FORMS = (
    ("config.json", "model.safetensors"),
    ("config.json", "model.safetensors.index.json", "model-*.safetensors"),
    ("config.json", "pytorch_model.bin"),
    ("config.json", "pytorch_model.bin.index.json", "pytorch_model-*.bin"),
    ("config.json", "*.safetensors"),
    ("data/weights/*.pth",),
)
"""The forms in which a repository holds a model, the best first; a file must match every pattern of its form."""

_BESIDE = ("config.json", "vocab.txt", "tokenizer*.json", "special_tokens_map.json", "LICENSE*", "README.md")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A model that was downloaded whole: its folder, the folder of its repository in the cache, and how much it is."""

    folder: Path
    home: Path
    n_files: int
    n_bytes: int


def is_offline() -> bool:
    """Tell whether HF_HUB_OFFLINE forbids the network, by the hub's own rule."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def cache_folder() -> Path:
    """Return the folder of the hub's cache, from the variables that the hub reads."""
    default = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(default, "huggingface")
    chosen = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expandvars(chosen)).expanduser()


def repo_folder(repo: str) -> Path:
    """Return the folder of a repository in the cache, whether it is there or not."""
    return cache_folder() / f"models--{repo.replace('/', '--')}"


def find_cached(repo: str) -> Path | None:
    """Return the folder of a model in the cache; None when it, or any file of its weights, is not there."""
    home = repo_folder(repo)
    try:
        with (home / "refs" / "main").open("rb") as file:
            revision = file.read(100).decode("ascii", errors="replace").strip()
    except OSError:
        return None
    if not re.fullmatch(r"[\w-][\w.-]*", revision):  # a path would lead out of the cache
        return None
    snapshot = home / "snapshots" / revision
    return snapshot if _is_complete(snapshot) else None


def download(repo: str) -> Snapshot:
    """Bring the newest files of a model into the cache, each checked by size and sha256. Raises ModelError."""
    hub = _package()
    with _explained(hub, repo):
        info = hub.HfApi().model_info(repo, files_metadata=True)
        listed = {file.rfilename: file for file in info.siblings or ()}
        names = choose_files(list(listed))
        if not names:
            raise ModelError(
                f"{repo} holds no model in a known form",
                hint="Known: config.json with .safetensors or pytorch_model.bin; data/weights/*.pth.",
            )
        folder = Path(hub.snapshot_download(repo, allow_patterns=names, cache_dir=str(cache_folder())))
    for name in names:
        _verify(folder / name, listed[name])
    n_bytes = sum((folder / name).stat().st_size for name in names)
    return Snapshot(folder=folder, home=repo_folder(repo), n_files=len(names), n_bytes=n_bytes)


def choose_files(names: Sequence[str]) -> list[str]:
    """Choose the files of the best form that is there in full, and what belongs beside it; none when none is.

    >>> choose_files(["README.md", "config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5"])
    ['README.md', 'config.json', 'model.safetensors']
    """
    for form in FORMS:
        if all(any(_fits(name, pattern) for name in names) for pattern in form):
            return [name for name in names if any(_fits(name, pattern) for pattern in (*form, *_BESIDE))]
    return []


def _fits(name: str, pattern: str) -> bool:
    """Match a pattern whose `*` stays within one folder."""
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def _is_complete(folder: Path) -> bool:
    """Tell whether all files of a model are there; links to what was not yet downloaded do not count."""
    files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    chosen = choose_files(files)
    indexes = [name for name in chosen if name.endswith(".index.json")]
    try:
        shards = {shard for name in indexes for shard in shard_names(folder / name)}
    except ModelError:
        return False
    return bool(chosen) and shards <= set(chosen)


def shard_names(index: Path) -> list[str]:
    """Return the files that an index of shards names, which must lie beside it. Raises ModelError."""
    named = read_object(index).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise ModelError(f"{index}: does not list the shards under weight_map")
    names = sorted(set(named.values()))
    outside = next((name for name in names if name in ("", "..") or Path(name).name != name), None)
    if outside is not None:
        raise ModelError(f"{index}: names {outside!r}, which does not lie beside it")
    return names


def _verify(path: Path, published: "RepoSibling") -> None:
    """Compare a file with what the hub says of it; one that differs is taken out of the cache."""
    right = published.size in (None, path.stat().st_size)
    if right and published.lfs is not None:
        with path.open("rb") as file:
            right = hashlib.file_digest(file, "sha256").hexdigest() == published.lfs.sha256
    if not right:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise ModelError(
            f"{path}: is not the file that was published: its size or sha256 differs",
            hint="It was damaged on the way, and is removed. Download the model again.",
        )


def _package() -> Any:
    try:
        import huggingface_hub.errors
    except ImportError as error:
        raise DependencyError(
            "downloading a model needs the package huggingface_hub", hint="pip install 'protembed[hub]'"
        ) from error
    return huggingface_hub


@contextmanager
def _explained(hub: Any, repo: str) -> Iterator[None]:
    """Turn the hub's errors into ours."""
    errors = hub.errors
    address = f"https://huggingface.co/{repo}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{repo}: its owner wants the terms accepted before a download",
            hint=f"Accept them at {address}, then log in: hf auth login",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"{repo}: not on the Hugging Face hub, or not public",
            hint=f"Look at {address}; protembed models lists names.",
        ) from error
    # A lost connection is an error of the HTTP library, which differs by version: HfHubHTTPError derives from its base.
    except (OSError, ValueError, *errors.HfHubHTTPError.__bases__) as error:
        raise ModelError(
            f"{repo}: cannot be downloaded ({error})",
            hint="A second start goes on where this one stopped. On a machine without network: protembed pull "
            f"{repo} elsewhere, and copy what it names.",
        ) from error
