"""What a user installs: the wheel has the weights in it, and is small."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from protembed.models.config import DEFAULT_MODEL

ROOT = Path(__file__).parent.parent


def test_the_wheel_ships_the_bundled_model(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert f"protembed/weights/{DEFAULT_MODEL}.safetensors" in names
    assert wheel.stat().st_size < 100e6
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


def test_every_bundled_model_has_a_card() -> None:
    for path in (ROOT / "weights").glob("*.safetensors"):
        assert path.with_suffix(".md").exists(), f"{path.name} has no model card"
