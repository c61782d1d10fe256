"""The plan of the house: imports point down, heavy packages stay where they belong, nothing heavy at start-up."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "protembed"

FLOORS = [
    ["errors", "interrupts"],
    ["schema"],
    ["sequences"],
    ["models"],
    ["tasks"],
    ["outputs"],
    ["checkpoints"],
    ["backends"],
    ["inference", "training"],
    ["api"],
    ["cli"],
    ["__main__"],
]
"""A room imports only from floors below its own."""

ROOMS = {
    "inference": [
        ["memory"],
        ["assembly"],
        ["embed", "predict"],
        ["run", "report"],
        ["embed_run", "contacts", "predict_run", "evaluate"],
        ["recompute"],
    ],
    "outputs": [
        ["content", "files", "printing", "guarded_bytes", "disk"],
        ["journal", "target", "unpacking"],
        ["writer", "plots", "safe_dataset"],
        ["safe_hdf5", "origin", "output_file"],
        ["file_writer", "stream", "hdf5", "text", "check_values", "shards"],
        ["store", "check", "merge_text"],
        ["merge"],
    ],
}
"""Floors inside a room where much happens."""

HOMES = {
    "typer": {"cli"},
    "rich": {"cli.console"},
    "onnxruntime": {"backends.onnx.session"},
    "h5py": {"outputs"},
    "Bio": {"sequences.records"},
    "matplotlib": {"training.curve", "outputs.plots"},
    "huggingface_hub": {"checkpoints.hub"},
    "lmdb": {"sequences.readers"},
    "pyarrow": {"sequences.readers"},
}

RANK = {name: floor for floor, names in enumerate(FLOORS) for name in names}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Return the full names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "protembed":
            found |= {f"protembed.{alias.name}" for alias in node.names if alias.name != "__version__"}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(str(node.module))
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    own = name_of(path).split(".")[0]
    for module in imports(path):
        package, _, rest = module.partition(".")
        other = rest.split(".")[0]
        if package == "protembed" and other and other != own:
            assert RANK[other] < RANK[own], f"{own} imports {other}, which does not stand below it"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down_inside_a_room(path: Path) -> None:
    room, _, own = name_of(path).partition(".")
    if room not in ROOMS or not own:
        return
    rank = {name: floor for floor, names in enumerate(ROOMS[room]) for name in names}
    own = own.split(".")[0]
    for module in imports(path):
        parts = module.split(".")
        if parts[:2] == ["protembed", room] and len(parts) > 2 and parts[2] != own:
            assert rank[parts[2]] < rank[own], f"{room}.{own} imports {parts[2]}, which does not stand below it"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_heavy_packages_stay_at_home(path: Path) -> None:
    for module in imports(path):
        homes = HOMES.get(module.split(".")[0])
        name = name_of(path)
        assert homes is None or {name, name.split(".")[0]} & homes, f"{name} imports {module}"


def test_the_command_line_starts_light() -> None:
    code = (
        "import sys, protembed.cli; print(sorted("
        "{'torch', 'onnxruntime', 'Bio', 'h5py', 'huggingface_hub', 'numpy'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # numpy comes with card.py's alphabets; it takes 0.1 s.
    assert set(ast.literal_eval(out.stdout)) <= {"numpy"}
