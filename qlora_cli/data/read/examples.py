"""Rows of a source as examples, for the few that tasks and probes need."""

from __future__ import annotations

from itertools import islice

from qlora_cli.data.example import Example
from qlora_cli.data.problems import RowProblems
from qlora_cli.data.read.formats import resolve_format, to_example
from qlora_cli.data.read.sources import read_rows
from qlora_cli.errors import DataError
from qlora_cli.recipe.data_schema import SourceSection


def read_examples(source: SourceSection, limit: int | None = None) -> list[Example]:
    """The rows of a source, or its first so many, as examples.

    Raises:
        DataError: the source does not read, or rows do not fit their format (the first 20 in full).
    """
    examples: list[Example] = []
    problems = RowProblems()
    format_name = ""
    for place, row in islice(read_rows(source), limit):
        format_name = format_name or resolve_format(source.format, source.columns, list(row), place)
        try:
            examples.append(to_example(row, place, format_name, source.columns))
        except DataError as error:
            problems.add_error(error)
    problems.raise_if_any()
    return examples
