"""Choice of a row's columns: made here, once, for reading rows and for reporting what is not read.

A field of a format is read from the column that the recipe maps to it, else from the column of its own name or of a
name that other tools give it. A column that the recipe maps is read there alone, never under its own name as well:

    columns: {instruction: input, output: target}      input -> instruction, target -> output, and no `input`

A mapped column may be inside another: `instances[0].output`, `data.question`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from qlora_cli.data.read.error_text import holds_something

OTHER_NAMES = {"input": ("context",), "system": ("system_prompt",), "tools": ("functions",)}
"""Field -> columns that hold the same in other files: Dolly's context, and the functions of OpenAI's older API."""

MISSING = object()
"""Stands for a column that a row does not have; null is a value."""

MAX_UNREAD_PARTS = 50
"""Parts of one column, read in part, that are named; lists of many items have as many."""

_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")
_PATH = re.compile(r"([^.\[\]]+)((?:\.[^.\[\]]+|\[\d+\])+)")


@dataclass(frozen=True)
class ColumnChoice:
    """Columns that are read of rows that have the same columns."""

    taken: tuple[tuple[str, str], ...]
    """Format field, and the column or path that it is read from."""

    unread: tuple[str, ...]
    """Columns that no field is read from."""

    parted: tuple[str, ...]
    """Columns of which a part is read, by a path."""


def path_of(column: str, seen: Collection[str]) -> tuple[str | int, ...]:
    """The steps that lead to a mapped column: its name alone, or the names and numbers of a path.

    >>> path_of("instances[0].output", ["instances"]), path_of("a.b", ["a.b"])
    (('instances', 0, 'output'), ('a.b',))
    """
    match = None if column in seen else _PATH.fullmatch(column)
    if match is None:
        return (column,)
    steps = (name or int(number) for name, number in _STEP.findall(match.group(2)))
    return (match.group(1), *steps)


def value_at(row: Mapping[str, Any], column: str) -> Any:
    """Value of a row in a column, or at a path such as `instances[0].output`; MISSING if it has none."""
    if column in row:
        return row[column]
    value: Any = row
    for step in path_of(column, row):
        if isinstance(step, int):
            if not isinstance(value, list) or step >= len(value):
                return MISSING
        elif not isinstance(value, Mapping) or step not in value:
            return MISSING
        value = value[step]
    return value


@lru_cache(maxsize=4096)
def choose_columns(
    fields: tuple[str, ...], named: tuple[str, ...], columns: tuple[tuple[str, str], ...], seen: tuple[str, ...]
) -> ColumnChoice:
    """The column from which each field of a format is read.

    Args:
        fields: of the format, all of them.
        named: those that are read under their own name where the recipe maps no column to them.
        columns: field and column or path, as the recipe maps them.
        seen: columns of the row.
    """
    mapped = dict(columns)
    tops = {str(path_of(column, seen)[0]) for column in mapped.values()}
    taken: dict[str, str] = {}
    for field in fields:
        if field in mapped:
            taken[field] = mapped[field]
        elif field in named:
            names = (name for name in (field, *OTHER_NAMES.get(field, ())) if name in seen and name not in tops)
            column = next(names, None)
            if column is not None:
                taken[field] = column
    paths = [path_of(column, seen) for column in taken.values()]
    read = {str(path[0]) for path in paths}
    return ColumnChoice(
        tuple(taken.items()),
        tuple(column for column in seen if column not in read),
        tuple(dict.fromkeys(str(path[0]) for path in paths if len(path) > 1)),
    )


def unread_columns(row: Mapping[str, Any], choice: ColumnChoice) -> list[str]:
    """The columns that hold something and are not read, with the parts of those that are read in part."""
    names = [column for column in choice.unread if holds_something(row[column])]
    if choice.parted:
        paths = [path_of(column, row) for _, column in choice.taken]
        for column in choice.parted:
            if column in row:
                names += _unread_parts(row[column], [path[1:] for path in paths if path[0] == column], column)
    return names


def _unread_parts(value: Any, paths: list[tuple[str | int, ...]], name: str) -> list[str]:
    """Names of the parts of a value that no path leads to."""
    found = []
    for part in _walk(value, paths, name):
        found.append(part)
        if len(found) == MAX_UNREAD_PARTS:
            break
    return found


def _walk(value: Any, paths: list[tuple[str | int, ...]], name: str) -> Iterator[str]:
    if () in paths or not holds_something(value):
        return
    if not paths:
        yield name
        return
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for step, item in items:
        inner = f"{name}[{step}]" if isinstance(step, int) else f"{name}.{step}"
        yield from _walk(item, [path[1:] for path in paths if path[0] == step], inner)


def without_ignored(row: dict[str, Any], ignored: Collection[str]) -> dict[str, Any]:
    """The row without some columns, and its lists of objects without the keys of these names.

    >>> without_ignored({"id": 1, "messages": [{"role": "user", "content": "Hi", "id": 7}]}, ["id"])
    {'messages': [{'role': 'user', 'content': 'Hi'}]}
    """
    if not ignored:
        return row
    return {
        column: [_without_keys(item, ignored) for item in value] if isinstance(value, list) else value
        for column, value in row.items()
        if column not in ignored
    }


def _without_keys(item: Any, ignored: Collection[str]) -> Any:
    return {key: value for key, value in item.items() if key not in ignored} if isinstance(item, dict) else item


def left_out_by(row: Mapping[str, Any], leave_out: Mapping[str, Any]) -> str | None:
    """The first column that holds a value for which the recipe leaves rows out; None where none does.

    True and false are not 1 and 0. Text counts as the value that it spells, since a CSV file holds nothing else.

    >>> left_out_by({"label": "False"}, {"label": False}), left_out_by({"label": 0}, {"label": False})
    ('label', None)
    """
    for column, given in leave_out.items():
        value = value_at(row, column)
        for other in given if isinstance(given, tuple) else (given,):
            if value is not MISSING and _is_same(value, other):
                return column
    return None


def _is_same(value: Any, other: bool | int | float | str) -> bool:
    if isinstance(value, str) and not isinstance(other, str):
        return value.strip().lower() == str(other).lower()
    return isinstance(value, bool) == isinstance(other, bool) and value == other
