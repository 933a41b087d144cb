"""Layouts of a row, and how each becomes an example.

To add a layout: one function in `layouts`, one line in FORMATS, one recipe, one test.

Preference pairs (columns `chosen` and `rejected`) are no layout: one answer is trained here, and which one the recipe
says through `columns`. Where the chosen answer stands apart from what it answers, `columns: {completion: chosen}`
puts it there, and assistant turns before it are read and not trained; where it is a whole conversation,
`columns: {messages: chosen}` takes it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qlora_cli.data.causes import Cause, RowError
from qlora_cli.data.example import Example, Place
from qlora_cli.data.read.layouts import (
    Fields,
    from_alpaca,
    from_messages,
    from_prompt_completion,
    from_sharegpt,
    from_text,
)
from qlora_cli.data.read.messages import row_error
from qlora_cli.data.read.values import names_of, shown
from qlora_cli.errors import DataError

_CHOSEN = "to train on the chosen answers of preference pairs set"


@dataclass(frozen=True)
class Format:
    """One layout of a row."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    convert: Callable[[Fields, Place], Example]
    mapped: tuple[str, ...] = ()
    """Optional fields that are read only where `columns` maps them."""

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """All field names, as `columns` may map them."""
        return self.required + self.optional + self.mapped

    @cached_property
    def unmapped(self) -> tuple[str, ...]:
        """Those that are read under their own names."""
        return self.required + self.optional


FORMATS: dict[str, Format] = {
    "alpaca": Format(("instruction", "output"), ("input", "system"), from_alpaca),
    "messages": Format(("messages",), ("tools",), from_messages, mapped=("completion",)),
    "sharegpt": Format(("conversations",), ("system", "tools"), from_sharegpt, mapped=("completion",)),
    "prompt_completion": Format(("prompt", "completion"), ("tools",), from_prompt_completion),
    "text": Format(("text",), (), from_text),
}


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
    if "chosen" in columns:
        field = "completion" if "prompt" in columns else "messages"
        raise DataError(f"no format fits the columns: {seen}", hint=f"{_CHOSEN} `columns: {{{field}: chosen}}`")
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
    absent = [column for column in columns.values() if column not in seen]
    if absent:
        raise DataError(
            f"`columns` names '{absent[0]}', and the columns are: {names_of(seen)}",
            place=str(place),
            hint=_did_you_mean(absent[0], seen) or "map format fields to columns that are there",
        )
    if name is None:
        taken = set(columns.values())
        names = [*columns, *(column for column in seen if column not in taken and column not in columns)]
        try:
            name = detect_format(names)
        except DataError as error:
            problem = error.problems[0]
            raise DataError(problem.text, place=str(place), hint=problem.hint) from error
    layout = FORMATS[name]
    for field in columns:
        if field not in layout.fields:
            raise DataError(
                f"`columns` maps '{field}', which format {name} does not have",
                place=str(place),
                hint=_did_you_mean(field, layout.fields) or f"its fields are: {', '.join(layout.fields)}",
            )
    return name


def to_example(row: Mapping[str, Any], place: Place, format: str, columns: Mapping[str, str]) -> Example:
    """The example that a row holds.

    Args:
        row: column -> value.
        place: of the row.
        format: a key of FORMATS.
        columns: format field -> column, where they differ.

    Raises:
        RowError: a missing column or a value that does not fit, with the row's place.
    """
    layout = FORMATS[format]
    if columns:
        optional = (*layout.optional, *(field for field in layout.mapped if field in columns))
        pairs = [(field, columns.get(field, field)) for field in (*layout.required, *optional)]
        fields = {field: _as_text(row[column], field, column) for field, column in pairs if column in row}
    else:
        fields = {field: row[field] for field in layout.unmapped if field in row}
    for field in layout.required:
        if field not in fields:
            raise _missing_column(field, columns.get(field, field), row, place, format)
    try:
        return layout.convert(fields, place)
    except RowError as error:
        if error.cause is Cause.NO_ANSWER and "completion" in layout.mapped and "chosen" in row:
            hint = f"{_CHOSEN} `columns: {{completion: chosen}}`"
            raise row_error(error.problems[0].text, place, hint, error.cause) from error
        raise


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
