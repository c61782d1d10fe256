"""The page of guarantees names tests that exist; the file map of ARCHITECTURE.md is that of the tree."""

import ast
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

NAMED = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs" / "guarantees.md").read_text())


def test_the_page_numbers_its_promises() -> None:
    numbers = re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "guarantees.md").read_text(), flags=re.MULTILINE)
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_every_test_that_a_promise_names_exists(file: str, test: str) -> None:
    tree = ast.parse((ROOT / "tests" / file).read_text())
    found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert test in found or (not test and any(name.startswith("test_") for name in found))


def test_the_file_map_is_that_of_the_tree() -> None:
    command = [sys.executable, str(ROOT / "docs" / "file_map.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
