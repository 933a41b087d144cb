"""Proposes which columns of a source are the prompt, the answer or the conversation, where no format fits by itself.

What is proposed has been tried: `to_example` takes the rows by it. The roles come from the columns' names first, then
from what they hold; columns that only say something about a row (ids, dates, categories) are never proposed.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from qlora_cli.data.example import Place, Row
from qlora_cli.data.read.column_profile import profile
from qlora_cli.data.read.column_roles import candidates, format_of
from qlora_cli.data.read.columns import MISSING, value_at, without_ignored
from qlora_cli.data.read.converters import FORMATS
from qlora_cli.data.read.error_text import kind_of, names_of
from qlora_cli.data.read.formats import read_columns, resolve_format, to_example
from qlora_cli.data.read.preferences import chosen_column
from qlora_cli.data.rejection import RejectionReason, RowError
from qlora_cli.errors import DataError
from qlora_cli.recipe.data_schema import SourceSection
from qlora_cli.recipe.one_line import one_line

NUM_ROWS = 50
"""Rows that are looked at: enough to distinguish ids and categories from text."""

_PLACE = Place("", None, 1)

MAX_TRIED = 200
"""Mappings that are tried on the rows before it is given up."""

Where = Literal["train", "eval", "tasks", "option"]
"""Place to write the mapping: under a key of the recipe, or as options of `qlora eval`."""


@dataclass(frozen=True)
class Suggestion:
    """A way to read a source, which its first rows have been read by."""

    columns: dict[str, str]
    """Format field -> column, where they differ."""

    format: str | None = None
    """Only where the columns fit several formats."""

    unread: list[str] = field(default_factory=list)
    """Columns that are not read then."""

    @property
    def settings(self) -> dict[str, Any]:
        """The keys that the source needs in a recipe."""
        named = {} if self.format is None else {"format": self.format}
        return named | ({"columns": self.columns} if self.columns else {})


def suggested_columns(rows: Sequence[Row], format: str | None = None) -> Suggestion | None:
    """A mapping by which the rows load; None where there is none.

    Args:
        rows: the first ones of a source, parsed.
        format: of the recipe; any where it is None.

    >>> rows = [{"subject": "math", "question": "What is 1 + 1?", "answer": "It is 2."}]
    >>> suggested_columns(rows).columns
    {'instruction': 'question', 'output': 'answer'}
    """
    rows = rows[:NUM_ROWS]
    best: tuple[int, Suggestion] | None = None
    for count, columns in enumerate(candidates(profile(rows), format)):
        if count == MAX_TRIED:
            break
        suggestion, num_loaded = _tried(columns, format, rows)
        if suggestion is not None and num_loaded == len(rows):
            return suggestion
        if suggestion is not None and num_loaded > (best[0] if best else len(rows) // 2):
            best = num_loaded, suggestion
    return best[1] if best else None


def resolve_source(
    source: SourceSection,
    rows: Sequence[tuple[Place, Row]],
    where: Where = "train",
    *,
    alone: bool = True,
) -> str:
    """The source's format, checked against its first rows; where they do not fit, the error says a mapping that does.

    Args:
        source: the section of the recipe.
        rows: its first ones, at least one.
        where: what the hint is to be written under.
        alone: whether it is the only source there.

    Raises:
        DataError: as `resolve_format`, or where no row has the columns of the format.
    """
    place = rows[0][0]
    contents = [without_ignored(row, source.ignore) for _, row in rows]
    try:
        name = resolve_format(source.format, source.columns, contents[0], place)
        _refuse_if_all_lack(FORMATS[name].required, source.columns, contents, place, name)
    except DataError as error:
        problem = error.problems[0]
        hint = mapping_hint(source, contents, where, alone=alone)
        raise DataError(problem.text, place=str(place), hint=hint or problem.hint) from error
    return name


def mapping_hint(source: SourceSection, rows: Sequence[Row], where: Where = "train", *, alone: bool = True) -> str:
    """Hint that maps the columns so that the rows are read, or says why no column can be the answer."""
    suggestion = suggested_columns(rows, source.format) or suggested_columns(rows)
    if suggestion is None:
        return _why_not(rows)
    unread = f" (not read then: {names_of(suggestion.unread)})" if suggestion.unread else ""
    if where == "option" and suggestion.columns:
        options = " ".join(f"--columns {_for_shell(f'{key}={name}')}" for key, name in suggestion.columns.items())
        return f"add `{options}`{unread}"
    return f"write `{source_line(source, suggestion, where, alone=alone)}` in the recipe{unread}"


def source_line(source: SourceSection, suggestion: Suggestion, where: Where = "train", *, alone: bool = True) -> str:
    """The source as it is to be written in a recipe, on one line.

    >>> source = SourceSection(path="a.jsonl")
    >>> source_line(source, Suggestion({"instruction": "question", "output": "answer"}))
    'train: {path: a.jsonl, columns: {instruction: question, output: answer}}'
    """
    written = source.model_dump(exclude_defaults=True, mode="json")
    others = {key: value for key, value in written.items() if key not in ("path", "format", "columns")}
    line = one_line({"path": source.path, **others, **suggestion.settings})
    return f"{where}: {line}" if alone and where in ("train", "eval") else f"- {line}"


def _refuse_if_all_lack(
    required: Sequence[str], columns: Mapping[str, str], rows: Sequence[Row], place: Place, format: str
) -> None:
    """Else every row would be reported by itself."""
    for name in required:
        column = columns.get(name, name)
        if all(value_at(row, column) is MISSING for row in rows):
            raise DataError(
                f"no column '{column}' for format {format}; the columns are: {names_of(rows[0])}", place=str(place)
            )


def _tried(columns: dict[str, str], format: str | None, rows: Sequence[Row]) -> tuple[Suggestion | None, int]:
    """The mapping with the format that it needs, and how many of the rows it reads."""
    wanted = format or format_of(columns)
    mapped = {name: column for name, column in columns.items() if name != column}
    given = format
    try:
        if resolve_format(format, mapped, rows[0], _PLACE) != wanted:
            return None, 0
    except DataError:
        given = wanted
        try:
            resolve_format(given, mapped, rows[0], _PLACE)
        except DataError:
            return None, 0
    unread = list(dict.fromkeys(name for row in rows for name in read_columns(row, wanted, mapped).unread))
    if chosen_column(unread) is not None:
        return None, 0
    return Suggestion(mapped, given, unread), sum(_loads(row, wanted, mapped) for row in rows)


def _loads(row: Row, format: str, columns: Mapping[str, str]) -> bool:
    """Whether the mapping makes an example of the row; what forbids to train it, reading it will say."""
    try:
        to_example(row, _PLACE, format, columns)
    except RowError as error:
        return error.cause is RejectionReason.CONTRADICTED
    return True


def _why_not(rows: Sequence[Row]) -> str:
    """Hint that lists the rows' columns with their kinds of value, and the columns of each format."""
    held = ", ".join(f"`{name}` holds {kind_of(value)}" for name, value in list(rows[0].items())[:6]) if rows else ""
    layouts = "; ".join(f"{name}: {', '.join(layout.required)}" for name, layout in FORMATS.items())
    return f"no column can be taken as it is ({held}): write the rows with the columns of a format ({layouts})"


def _for_shell(text: str) -> str:
    """
    >>> _for_shell("output=answer"), _for_shell("output=the answer")
    ('output=answer', "'output=the answer'")
    """
    return shlex.quote(text)
