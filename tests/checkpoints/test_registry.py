"""Models by name: what is listed, found in a cache, downloaded and refused; the hub is a stub that copies a folder."""

import hashlib
import json
import shutil
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from protembed.backends import catalog
from protembed.backends.load import ModelOptions, open_model
from protembed.checkpoints import find as names
from protembed.checkpoints import hub
from protembed.checkpoints.registry import KNOWN, NOTICES, find_known, show_terms
from protembed.errors import DependencyError, ModelError
from tests.conftest import GOLDEN, Run

TINY = GOLDEN / "esm2_hf"
REPO = "facebook/esm2_t6_8M_UR50D"
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no package of the hub."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    return tmp_path / "cache"


def put(cache: Path, repo: str = REPO, source: Path = TINY) -> Path:
    """Lay a folder into the cache as the hub does."""
    home = cache / f"models--{repo.replace('/', '--')}"
    (home / "refs").mkdir(parents=True, exist_ok=True)
    (home / "refs" / "main").write_text(REVISION)
    return Path(shutil.copytree(source, home / "snapshots" / REVISION, dirs_exist_ok=True))


class HfHubHTTPError(OSError):
    """The hub's own error, as its package names it."""


class RepositoryNotFoundError(HfHubHTTPError):
    pass


class GatedRepoError(RepositoryNotFoundError):
    pass


class StubHub:
    """Stands for huggingface_hub: repositories are folders; `fault` is raised, `damage` is done to files."""

    def __init__(self, cache: Path) -> None:
        self.cache, self.folders = cache, {REPO: TINY}
        self.fault: Exception | None = None
        self.asked: list[str] = []
        self.patterns: list[str] = []
        self.damage: dict[str, bytes] = {}

    def model_info(self, repo: str, *, files_metadata: bool) -> Any:
        assert files_metadata
        self.asked.append(repo)
        if self.fault is not None:
            raise self.fault
        if repo not in self.folders:
            raise RepositoryNotFoundError(repo)
        files = [path for path in sorted(self.folders[repo].rglob("*")) if path.is_file()]
        return SimpleNamespace(siblings=[self._sibling(path, self.folders[repo]) for path in files])

    def snapshot_download(self, repo: str, *, allow_patterns: list[str], cache_dir: str) -> str:
        assert Path(cache_dir) == self.cache
        self.patterns = allow_patterns
        target = put(self.cache, repo, self.folders[repo])
        for path in target.rglob("*"):
            if path.is_file() and path.relative_to(target).as_posix() not in allow_patterns:
                path.unlink()
        for name, content in self.damage.items():
            (target / name).write_bytes(content)
        return str(target)

    @staticmethod
    def _sibling(path: Path, folder: Path) -> Any:
        content = path.read_bytes()
        lfs = SimpleNamespace(sha256=hashlib.sha256(content).hexdigest()) if path.suffix == ".safetensors" else None
        return SimpleNamespace(rfilename=path.relative_to(folder).as_posix(), size=len(content), lfs=lfs)


@pytest.fixture
def stub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> StubHub:
    stub, package, errors = StubHub(cache), ModuleType("huggingface_hub"), ModuleType("huggingface_hub.errors")
    for error in (HfHubHTTPError, RepositoryNotFoundError, GatedRepoError):
        setattr(errors, error.__name__, error)
    package.errors = errors  # type: ignore[attr-defined]
    package.HfApi = lambda: stub  # type: ignore[attr-defined]
    package.snapshot_download = stub.snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return stub


def test_no_name_stands_for_two_models() -> None:
    for model in KNOWN:
        for name in model.names:
            assert find_known(name) is model, name


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("esm2_8m", "esm2_8m"),
        ("ESM2_650M", "esm2_650m"),
        ("esm2_t48_15B_UR50D", "esm2_15b"),
        ("facebook/esm1v_t33_650M_UR90S_3", "esm1v_3"),
        ("esmc-300m", "esmc_300m"),
        ("Biohub/esmc-600m-2024-12", "esmc_600m"),
        ("Rostlab/prot_bert_bfd", "prot_bert_bfd"),
        ("chandar-lab/AMPLIFY_350M", "amplify_350m"),
        ("tape", "tape_bert_base"),
    ],
)
def test_names_that_people_write(name: str, short: str) -> None:
    known = find_known(name)
    assert known is not None
    assert known.name == short


def test_models_are_listed_with_their_place(run: Run, cache: Path) -> None:
    put(cache)
    result = run("models")
    assert result.returncode == 0, result.stderr
    assert result.stdout == run("models", "list").stdout
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert lines[0] == ["name", "parameters", "layers", "width", "limit", "license", "where"]
    where = {line[0]: line[-1] for line in lines[1:]}
    assert where["protembed-6m"] == "bundled"
    assert where["esm2_8m"] == "cached"
    assert where["esm2_35m"] == where["proteinlm_3b"] == "known"


def test_info_shows_one(run: Run, cache: Path) -> None:
    folder = put(cache)
    for name in ("esm2_8m", REPO):
        assert ["path", str(folder)] in catalog.describe_model(name)
    assert ["where", "bundled"] in catalog.describe_model("protembed-6m")
    assert ["name", "esm2_hf"] in catalog.describe_model(str(TINY))
    shown = run("models", "info", "esmc_600m")
    assert "license\tCambrian Non-Commercial" in shown.stdout
    assert "non-commercial use only" in shown.stdout
    assert "Did you mean esm2_650m" in run("models", "info", "esm2_650").stderr


def test_a_cached_model_needs_no_package(cache: Path) -> None:
    folder = put(cache)
    assert names.find_model("esm2_8m") == names.find_model(REPO, offline=True) == folder
    assert open_model(ModelOptions(model="esm2_8m", device="cpu")).card.name == "esm2_t6_8M_UR50D"


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({"HOME": "/d"}, "/d/.cache/huggingface/hub"),
    ],
)
def test_the_cache_lies_where_the_hub_says(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], folder: str
) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hub.cache_folder() == Path(folder)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_an_incomplete_cache_is_no_model(cache: Path, missing: str) -> None:
    (put(cache) / missing).unlink()
    assert hub.find_cached(REPO) is None


def test_a_missing_shard_is_no_model(cache: Path) -> None:
    folder = put(cache)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict(zip("ab", shards, strict=True))})
    )
    assert hub.find_cached(REPO) is None
    (folder / shards[1]).symlink_to(cache / "not yet there")
    assert hub.find_cached(REPO) is None
    (folder / shards[1]).unlink()
    (folder / shards[1]).write_bytes(b"weights")
    assert hub.find_cached(REPO) == folder


@pytest.mark.parametrize("how", ["option", "variable"])
def test_offline_is_an_error_that_says_what_to_do(
    stub: StubHub, cache: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "variable":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="esm2_650m is not in the cache") as caught:
        names.find_model("esm2_650m", offline=how == "option")
    assert "protembed pull esm2_650m." in caught.value.hint
    assert "models--facebook--esm2_t33_650M_UR50D" in caught.value.hint
    assert str(cache) in caught.value.hint
    assert not stub.asked


def test_offline_on_the_command_line(run: Run, fasta: Path, tmp_path: Path) -> None:
    for words in (("embed", fasta, "-m", "esm2_650m", "-o", "out.h5"), ("convert", "esm2_650m", "-o", "a.safetensors")):
        result = run(*words, "--offline")
        assert result.returncode == 2
        assert "protembed pull esm2_650m" in result.stderr
        assert "Traceback" not in result.stderr


def test_pull_is_refused_offline(stub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        catalog.pull_model("esm2_8m")
    assert not stub.asked


def test_without_the_extra_the_command_is_named() -> None:
    with pytest.raises(DependencyError) as caught:
        names.find_model("esm2_8m")
    assert caught.value.hint == "pip install 'protembed[hub]'"


def test_a_model_is_downloaded_once(stub: StubHub) -> None:
    first = names.find_model("esm2_8m")
    assert names.find_model(REPO) == first
    assert stub.asked == [REPO]


def test_pull_says_what_to_copy(stub: StubHub, cache: Path) -> None:
    said = "\n".join(catalog.pull_model("esm2_8m"))
    assert f"{REPO}: 3 files" in said
    assert str(cache / "models--facebook--esm2_t6_8M_UR50D" / "snapshots" / REVISION) in said
    assert "-m PATH" in said
    assert stub.patterns == ["config.json", "model.safetensors", "vocab.txt"]
    assert catalog.pull_model("protembed-6m") == ["protembed-6m is bundled: it needs no download"]


@pytest.mark.parametrize(
    ("name", "content"), [("model.safetensors", b"0" * (TINY / "model.safetensors").stat().st_size), ("vocab.txt", b"")]
)
def test_a_damaged_download_is_taken_out(stub: StubHub, name: str, content: bytes) -> None:
    stub.damage = {name: content}
    with pytest.raises(ModelError, match="not the file that was published"):
        catalog.pull_model("esm2_8m")
    assert not (hub.repo_folder(REPO) / "snapshots" / REVISION / name).exists()


def test_a_repository_of_no_known_form(stub: StubHub, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "weights.gguf").write_text("")
    stub.folders["some/model"] = tmp_path / "other"
    with pytest.raises(ModelError, match="no model in a known form"):
        catalog.pull_model("some/model")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (GatedRepoError("403"), "terms accepted"),
        (RepositoryNotFoundError("404"), "not on the Hugging Face hub"),
        (ConnectionError("no route"), "cannot be downloaded"),
    ],
)
def test_faults_of_the_hub_are_explained(stub: StubHub, fault: Exception, message: str) -> None:
    stub.fault = fault
    with pytest.raises(ModelError, match=message):
        names.find_model("some/model")


@pytest.mark.parametrize("name", ["esm2_650", "weights/model.pt", "here/model", "a/b/c", "../x"])
def test_what_is_no_name_asks_no_network(
    stub: StubHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="no model is called"):
        names.find_model(name)
    assert not stub.asked


def test_models_that_the_hub_does_not_have(stub: StubHub) -> None:
    for name, place in (("proteinlm_200m", "github.com/THUDM/ProteinLM"), ("tape_bert_base", "s3.amazonaws.com")):
        for ask in (names.find_model, catalog.pull_model):
            with pytest.raises(ModelError) as caught:
                ask(name)
            assert place in caught.value.hint
            assert "-m PATH" in caught.value.hint
    assert not stub.asked


def test_terms_are_shown_before_use(stub: StubHub, cache: Path) -> None:
    stub.fault = ConnectionError("no route")
    with pytest.warns(UserWarning, match="non-commercial use only"), pytest.raises(ModelError):
        names.find_model("esmc_600m")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        show_terms("MIT")
    assert {model.license for model in KNOWN if model.family == "ESM-C"} == set(NOTICES)


def test_the_older_home_of_a_model_is_found(cache: Path, tmp_path: Path) -> None:
    weights = tmp_path / "esmc" / "data" / "weights"
    weights.mkdir(parents=True)
    (weights / "esmc_300m_2024_12_v0.pth").write_bytes(b"weights")
    folder = put(cache, "biohub/esmc-300m-2024-12", tmp_path / "esmc")
    with pytest.warns(UserWarning, match="Cambrian Open"):
        assert names.find_model("esmc_300m") == folder
