"""Layout of a source's rows, and the example that a row holds by it.

Preference pairs (`chosen` and `rejected`) are not a layout: one answer is trained here, and which one the recipe
says through `columns`. Where the chosen answer is apart from what it answers, `columns: {completion: chosen}`
puts it there, and assistant turns before it are read and not trained; where it is a whole conversation,
`columns: {messages: chosen}` takes it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping
from typing import Any

from qlora_cli.data.example import Example, Place
from qlora_cli.data.read.columns import MISSING, ColumnChoice, choose_columns, path_of, value_at
from qlora_cli.data.read.contradictions import refuse_contradictions
from qlora_cli.data.read.converters import FORMATS
from qlora_cli.data.read.error_text import names_of, row_error, shown
from qlora_cli.data.read.preferences import chosen_column, preference_hint
from qlora_cli.data.rejection import RejectionReason, RowError
from qlora_cli.errors import DataError

ANSWERS = ("output", "answer", "response", "completion", "target", "answers", "targets", "summary")
"""Columns that hold an answer where they are beside `text`."""


def detect_format(columns: Collection[str]) -> str:
    """The one format whose required fields are all there.

    >>> detect_format(["instruction", "input", "output", "id"])
    'alpaca'

    Raises:
        DataError: none fits, or more than one does.
    """
    fitting = [name for name, layout in FORMATS.items() if set(layout.required) <= set(columns)]
    if len(fitting) == 1:
        return fitting[0]
    seen = names_of(columns)
    if fitting:
        raise DataError(
            f"the columns ({seen}) fit more than one format: {', '.join(fitting)}",
            hint=f"choose one, e.g. `format: {fitting[0]}`",
        )
    if chosen_column(columns) is not None:
        raise DataError(f"no format fits the columns: {seen}", hint=preference_hint(columns))
    layouts = "; ".join(f"{name}: {', '.join(layout.required)}" for name, layout in FORMATS.items())
    first = names_of(list(columns)[:1] or ["question"])
    raise DataError(
        f"no format fits the columns: {seen}",
        hint=f"set `format` and `columns`, e.g. `columns: {{instruction: {first}, output: ...}}` "
        f"(formats need {layouts})",
    )


def resolve_format(name: str | None, columns: Mapping[str, str], seen: Collection[str], place: Place) -> str:
    """The format of a source, given or detected, checked against its first row.

    Args:
        name: format given in the recipe.
        columns: format field -> column, as given in the recipe.
        seen: columns of the first row.
        place: of the first row.

    Raises:
        DataError: a mapped column that is not there, an unknown field, or no format that fits.
    """
    absent = [column for column in columns.values() if not _is_there(column, seen)]
    if absent:
        raise DataError(
            f"`columns` names '{absent[0]}', and the columns are: {names_of(seen)}",
            place=str(place),
            hint=_did_you_mean(absent[0], seen) or "map format fields to columns that are there",
        )
    twice = [column for column in columns.values() if list(columns.values()).count(column) > 1]
    if twice:
        fields = " and ".join(field for field, column in columns.items() if column == twice[0])
        text = f"`columns` reads '{twice[0]}' twice, as {fields}"
        raise DataError(text, place=str(place), hint="map each column to one field")
    if name is None:
        taken = {path_of(column, seen)[0] for column in columns.values()}
        names = [*columns, *(column for column in seen if column not in taken and column not in columns)]
        try:
            name = detect_format(names)
        except DataError as error:
            problem = error.problems[0]
            hint = preference_hint(seen) if chosen_column(names) is not None else problem.hint
            raise DataError(problem.text, place=str(place), hint=hint) from error
        _refuse_answer_beside_text(name, names, place)
    layout = FORMATS[name]
    for field in columns:
        if field not in layout.fields:
            raise DataError(
                f"`columns` maps '{field}', which format {name} does not have",
                place=str(place),
                hint=_did_you_mean(field, layout.fields) or f"its fields are: {', '.join(layout.fields)}",
            )
    return name


def _is_there(column: str, seen: Collection[str]) -> bool:
    """Whether the first row has a mapped column; of a path in a row whose values are not available, its first step."""
    if isinstance(seen, Mapping):
        return value_at(seen, column) is not MISSING
    return path_of(column, seen)[0] in seen


def _refuse_answer_beside_text(name: str, columns: Collection[str], place: Place) -> None:
    """`text` beside an answer is a prompt or running text: nothing in the file says which.

    Raises:
        DataError: the recipe does not say it either.
    """
    answer = next((column for column in ANSWERS if column in columns), None)
    if name == "text" and answer is not None:
        raise DataError(
            f"the columns ({names_of(columns)}) are running text, or a prompt with its answer",
            place=str(place),
            hint=f"write under the source `columns: {{instruction: text, output: {answer}}}` to train the answer, or "
            "`format: text` to train `text` alone",
        )


def read_columns(row: Mapping[str, Any], format: str, columns: Mapping[str, str]) -> ColumnChoice:
    """Columns of the row that are read for the fields of its format."""
    layout = FORMATS[format]
    return choose_columns(layout.fields, layout.unmapped, tuple(columns.items()), tuple(row))


def to_example(row: Mapping[str, Any], place: Place, format: str, columns: Mapping[str, str]) -> Example:
    """The example that a row holds.

    Args:
        row: column -> value, without columns that are to have no effect.
        place: of the row.
        format: a key of FORMATS.
        columns: format field -> column or path, where they differ.

    Raises:
        RowError: a missing column, a value that does not fit, or one that forbids training, with the row's place.
    """
    layout = FORMATS[format]
    choice = read_columns(row, format, columns)
    fields = {
        field: _as_text(value, field, column)
        for field, column in choice.taken
        if (value := value_at(row, column)) is not MISSING
    }
    for field in layout.required:
        if field not in fields:
            raise _missing_column(field, columns.get(field, field), row, place, format)
    try:
        example = layout.convert(fields, place)
    except RowError as error:
        if error.cause is RejectionReason.NO_ANSWER and chosen_column(row) is not None:
            hint = preference_hint(row, field="completion")
            raise row_error(error.problems[0].text, place, hint, error.cause) from error
        raise
    if choice.unread:
        refuse_contradictions(row, choice.unread, place)
    return example


def _as_text(value: Any, field: str, column: str) -> Any:
    """A whole number or a truth value as JSON writes it, where the recipe says that it is to be read as text.

    >>> _as_text(True, "output", "answer"), _as_text(3, "output", "answer"), _as_text(3, "output", "output")
    ('true', '3', 3)
    """
    is_said = field != column and field not in ("messages", "conversations", "tools")
    return json.dumps(value) if is_said and isinstance(value, bool | int) else value


def _missing_column(field: str, column: str, row: Mapping[str, Any], place: Place, format: str) -> RowError:
    return row_error(
        f"no column '{column}' for format {format}; the columns are: {names_of(row)}",
        place,
        _did_you_mean(column, row) or f"map it in the recipe: `columns: {{{field}: <column>}}`",
    )


def _did_you_mean(word: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(word, list(known)[:100], n=1)
    return f"did you mean {shown(close[0])}?" if close else ""
