"""Columns that `qlora eval` reads of a given file: those that are named, or those of the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, get_args

from qlora_cli import console
from qlora_cli.choices import ExchangeFormat
from qlora_cli.data.example import Place, Row
from qlora_cli.data.read.columns import MISSING, value_at
from qlora_cli.data.read.converters import FORMATS
from qlora_cli.data.read.formats import resolve_format
from qlora_cli.data.read.sources import parse_row, read_raw
from qlora_cli.errors import ArgumentError, DataError
from qlora_cli.recipe.data_schema import SourceSection
from qlora_cli.recipe.eval_schema import TaskSection
from qlora_cli.recipe.one_line import one_line
from qlora_cli.recipe.schema import Recipe

Source = TypeVar("Source", SourceSection, TaskSection)


def parse_columns(texts: Sequence[str]) -> dict[str, str]:
    """`--columns output=answer`, given once for each field, as a recipe's `columns`.

    >>> parse_columns(["instruction=question", "output=the answer"])
    {'instruction': 'question', 'output': 'the answer'}

    Raises:
        ArgumentError: for a text without a field of a format and a column.
    """
    fields = dict.fromkeys(field for layout in FORMATS.values() for field in layout.fields)
    columns = {}
    for text in texts:
        field, _, column = text.partition("=")
        if not column:
            raise ArgumentError(f"--columns '{text}' is not FIELD=COLUMN", hint="write `--columns output=answer`")
        if field not in fields:
            raise ArgumentError(f"--columns '{text}': no format has '{field}'", hint=f"fields are {', '.join(fields)}")
        columns[field] = column
    return columns


def read_like_the_run(source: Source, recipe: Recipe | None) -> Source:
    """The source with format and columns of the run's own data, where its file has all of these columns.

    Held-out rows come before training rows, and these before tasks. A source that says itself how it is read stays.
    """
    if recipe is None or source.columns or source.format:
        return source
    first = _first_row(source.path)
    if first is None:
        return source
    for known in _sources_of(recipe):
        if (known.columns or known.format) and _reads(known, first):
            if isinstance(source, TaskSection) and known.format not in (None, *get_args(ExchangeFormat)):
                continue
            changes = {"format": known.format, "columns": known.columns}
            told = one_line({key: value for key, value in changes.items() if value})
            console.note(f"{source.path} is read as the run's {known.path}: {told}")
            return source.model_copy(update=changes)
    return source


def _sources_of(recipe: Recipe) -> list[SourceSection | TaskSection]:
    return [*(recipe.data.eval or ()), *recipe.data.train, *recipe.eval.tasks]


def _first_row(path: str) -> Row | None:
    """None where it cannot be read, which whoever reads all of it will say."""
    try:
        raw = next(read_raw(SourceSection(path=path)))
        return parse_row(raw)
    except DataError:
        return None


def _reads(known: SourceSection | TaskSection, row: Row) -> bool:
    try:
        name = resolve_format(known.format, known.columns, row, Place(known.path, None, 1))
    except DataError:
        return False
    return all(value_at(row, known.columns.get(field, field)) is not MISSING for field in FORMATS[name].required)
