"""Words to choose from and what acts on them agree: a word that nothing acts on, or the other way round, is found."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from qlora_cli import choices
from qlora_cli.data.example import Conversation, Place
from qlora_cli.data.read.converters import FORMATS
from qlora_cli.data.read.formats import resolve_format, to_example
from qlora_cli.deploy.formats import table as export_formats
from qlora_cli.evaluate.metrics.table import METRICS
from qlora_cli.evaluate.tasks.load import KINDS

ROOT = Path(__file__).resolve().parents[1]
DATA_PAGE = (ROOT / "docs" / "data.md").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")
PLACE = Place("README.md", 1, 1)


@pytest.mark.parametrize(
    ("words", "acted_on"),
    [
        (choices.DataFormat, FORMATS),
        (choices.MetricName, METRICS),
        (choices.TaskKind, KINDS),
        (choices.ExportFormat, export_formats.FORMATS),
        (choices.ExportFormat, choices.EXPORT_FORMATS),
    ],
)
def test_every_word_is_acted_on_and_nothing_else_is(words, acted_on):
    assert [*get_args(words)] == [*acted_on]


def table(page, heading):
    """The rows of a table, as lists of cells."""
    [lines] = re.findall(rf"^\| {re.escape(heading)} \|\n\|[-|]+\n((?:\|.*\n)+)", page, flags=re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|\n").split(" | ")] for line in lines.splitlines()]


def test_docs_name_every_data_format_with_its_fields():
    rows = {
        cells[0].strip("`"): tuple(re.findall(r"`(\w+)`", cells[1]))
        for cells in table(DATA_PAGE, "format | fields | also read")
    }
    assert rows == {name: layout.required for name, layout in FORMATS.items()}


@pytest.mark.parametrize(("name", "row"), table(README, "format | a row"))
def test_the_rows_that_the_readme_shows_are_read_as_it_says(name, row):
    row = json.loads(row.strip("`"))
    assert resolve_format(None, {}, row, PLACE) == name.strip("`")
    example = to_example(row, PLACE, name.strip("`"), {})
    spoken = example.messages[-1]["content"] if isinstance(example, Conversation) else example.completion
    assert spoken == "..."
