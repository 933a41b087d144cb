"""Every malformed file is refused in one line that names its line, or it is read."""

from __future__ import annotations

import json

import pytest

from qlora_cli.data.read.examples import read_examples
from qlora_cli.errors import DataError
from qlora_cli.recipe.data_schema import SourceSection
from tests.data.read.malformed_files import CSV_FILES, GZIP_FILES, JSON_FILES, OTHER_NAMES
from tests.data.read.malformed_lines import FILES, GOOD, LINES
from tests.data.read.malformed_messages import MESSAGES
from tests.data.read.malformed_rows import FITTING, ROWS
from tests.data.read.malformed_tables import ARROW_FILES, FOLDERS, PARQUET_FILES


def second_line(outcome):
    return f":2: {outcome}" if isinstance(outcome, str) else outcome


def fitting_then(row, layout):
    """A file whose second row is the one to be looked at."""
    return "".join(json.dumps(row) + "\n" for row in (FITTING[layout], row)).encode()


CASES = [
    *FILES,
    *((f"{name}.jsonl", GOOD + f"{line}\n".encode(), second_line(outcome)) for name, line, outcome in LINES),
    *JSON_FILES,
    *CSV_FILES,
    *GZIP_FILES,
    *((name, GOOD, outcome) for name, outcome in OTHER_NAMES),
    *PARQUET_FILES,
    *ARROW_FILES,
    *FOLDERS,
    *(
        (f"messages_{name}.jsonl", fitting_then({"messages": messages}, "messages"), f":2: {text}")
        for name, messages, text in MESSAGES
    ),
    *((f"{layout}_{name}.jsonl", fitting_then(row, layout), f":2: {text}") for layout, name, row, text in ROWS),
]


def write(content, path):
    if isinstance(content, bytes):
        path.write_bytes(content)
        return
    path.mkdir()
    for name, inner in content.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(inner)


def outcome_of(path):
    """The number of rows, or place (behind the path) and text of the first problem."""
    try:
        return len(read_examples(SourceSection(path=str(path))))
    except DataError as error:
        problem = error.problems[0]
        text = f"{problem.place}: {problem.text}"
        if "\n" in text + problem.hint:
            return f"more than one line: {text} {problem.hint}"
        return text.removeprefix(str(path))


@pytest.mark.parametrize(("name", "content", "outcome"), CASES, ids=[case[0] for case in CASES])
def test_a_file_is_read_or_refused_in_one_line_that_names_its_place(name, content, outcome, tmp_path):
    write(content, tmp_path / name)
    seen = outcome_of(tmp_path / name)
    if isinstance(outcome, str) and outcome.endswith("..."):
        assert str(seen).startswith(outcome.removesuffix("..."))
    else:
        assert seen == outcome


def test_the_table_is_large_and_no_case_stands_twice():
    names = [name for name, _, _ in CASES]
    assert len(names) == len(set(names))
    assert sum(isinstance(outcome, str) for _, _, outcome in CASES) >= 200
