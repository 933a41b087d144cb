"""Rows of a source as examples, for the few that tasks and probes need."""

from __future__ import annotations

from itertools import chain, islice

from qlora_cli.data.example import Example
from qlora_cli.data.problems import RowProblems
from qlora_cli.data.read.column_mapping import NUM_ROWS, Where, resolve_source
from qlora_cli.data.read.formats import to_example
from qlora_cli.data.read.sources import read_rows
from qlora_cli.errors import DataError
from qlora_cli.recipe.data_schema import SourceSection


def read_examples(
    source: SourceSection, limit: int | None = None, *, where: Where = "train", alone: bool = True
) -> list[Example]:
    """The rows of a source, or its first so many, as examples.

    Args:
        source: of a recipe, or made of a command's options.
        limit: all where it is None.
        where: what the hint is to be written under, where the columns fit no format.
        alone: whether the source is the only one there.

    Raises:
        DataError: the source does not read, or rows do not fit their format (the first 20 in full).
    """
    examples: list[Example] = []
    problems = RowProblems()
    rows = islice(read_rows(source), limit)
    first = list(islice(rows, NUM_ROWS))
    format_name = resolve_source(source, first, where, alone=alone) if first else ""
    for place, row in chain(first, rows):
        try:
            examples.append(to_example(row, place, format_name, source.columns))
        except DataError as error:
            problems.add_error(error)
    problems.raise_if_any()
    return examples
