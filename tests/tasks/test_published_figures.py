"""The figures that are published with the bundled heads agree with themselves and with the heads' own files."""

import re
from pathlib import Path

import pytest

from protembed.checkpoints.head_arrays import read_head_card
from tests.conftest import ROOT

PAGE = (ROOT / "weights" / "README.md").read_text(encoding="utf-8")
HEADS = sorted((ROOT / "weights" / "heads").glob("protembed-6m-*.safetensors"))
FIGURE = re.compile(r"(-?[0-9.]+) \((-?[0-9.]+) to (-?[0-9.]+)\)")


def test_every_published_figure_lies_in_its_interval() -> None:
    figures = [tuple(map(float, found.groups())) for found in FIGURE.finditer(PAGE)]
    assert len(figures) > 80
    outside = [figure for figure in figures if not figure[1] <= figure[0] <= figure[2]]
    assert not outside


@pytest.mark.parametrize("path", HEADS, ids=lambda path: path.stem)
def test_numbers_of_training_proteins_are_those_in_the_heads_files(path: Path) -> None:
    card = read_head_card(path)
    rows = [line.split("|") for line in PAGE[PAGE.index("## The data") :].splitlines() if line.startswith("| ")]
    (row,) = (row for row in rows if card.task in row[1].replace(" ", "").split(","))
    told = re.match(r"[0-9,]+", row[4].strip())
    assert told is not None, "the column begins with the number of training proteins"
    assert int(told.group().replace(",", "")) == card.training["proteins"]


def test_the_summary_repeats_the_table() -> None:
    """The head's first figure of a test set stands in both tables, in the same digits."""
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in PAGE.splitlines() if "|" in line]
    table = {(row[0], row[1], row[4], row[3]): row[5] for row in lines if len(row) == 6 and FIGURE.match(row[5])}
    summary = [row for row in lines if len(row) == 7 and FIGURE.match(row[3])]
    assert len(summary) >= 14
    for task, split, metric, ours, twin, *_ in summary:
        assert table[task, split, metric, "protembed-6m"] == ours
        assert table[task, split, metric, "one-hot twin"] == twin
