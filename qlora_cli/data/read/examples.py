"""Rows of a source as examples, for the few that tasks and probes need."""

from __future__ import annotations

from itertools import chain, islice

from qlora_cli.data.example import Example, Place, Row
from qlora_cli.data.problems import RowProblems
from qlora_cli.data.read.column_mapping import NUM_ROWS, Where, resolve_source
from qlora_cli.data.read.columns import left_out_by, value_at, without_ignored
from qlora_cli.data.read.error_text import row_error, shown
from qlora_cli.data.read.formats import to_example
from qlora_cli.data.read.sources import read_rows
from qlora_cli.data.rejection import RejectionReason, RowError
from qlora_cli.errors import DataError
from qlora_cli.recipe.data_schema import SourceSection


def read_examples(
    source: SourceSection, limit: int | None = None, *, where: Where = "train", alone: bool = True
) -> list[Example]:
    """The rows of a source, or the first few of them, as examples.

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
            examples.append(example_of(row, place, source, format_name)[0])
        except DataError as error:
            if not (isinstance(error, RowError) and error.cause is RejectionReason.LEFT_OUT):
                problems.add_error(error)
    problems.raise_if_any()
    return examples


def example_of(row: Row, place: Place, source: SourceSection, format: str) -> tuple[Example, Row]:
    """The example that a row of a source holds, and the row without the columns that are to have no effect.

    Args:
        row: as it was read.
        place: of the row.
        source: that it comes from.
        format: of the source, as `resolve_format` says.

    Raises:
        RowError: a row that is left out, does not fit its format, or forbids training.
    """
    column = left_out_by(row, source.leave_out) if source.leave_out else None
    if column is not None:
        text = f"'{column}' is {shown(value_at(row, column))}"
        raise row_error(text, place, cause=RejectionReason.LEFT_OUT)
    row = without_ignored(row, source.ignore)
    return to_example(row, place, format, source.columns), row
