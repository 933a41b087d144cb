"""Values of rows: how errors name them (short, and on one line whatever they hold), and nulls that say nothing."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from qlora_cli.data.example import Place
from qlora_cli.data.rejection import RejectionReason, RowError
from qlora_cli.secrets import redacted

MAX_CHARS = 60
MAX_NAMES = 20
LONGEST_SECRET = 4096
"""Characters that are looked at for secrets before a value is cut: half a secret has no shape, and is one still."""


def kind_of(value: Any) -> str:
    """The JSON name of the value's type, for error texts.

    >>> kind_of(None), kind_of([1]), kind_of(2.5)
    ('null', 'a list', 'a number')
    """
    names = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def shown(value: Any) -> str:
    r"""The value on one line, cut where it is long.

    >>> print(shown("two\nlines"), shown(None), shown("x" * 100)[-4:])
    'two\nlines' null x...
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        value = redacted(value[: MAX_CHARS + LONGEST_SECRET])[: MAX_CHARS + 1]
    text = redacted(repr(value))
    return text if len(text) <= MAX_CHARS else text[:MAX_CHARS] + "..."


def names_of(columns: Collection[str]) -> str:
    r"""The columns of a row, some of them where there are many.

    >>> print(names_of(["text", "two\nlines"]), "|", names_of([]))
    text, 'two\nlines' | none
    """
    names = [
        name if name.isprintable() and len(name) <= MAX_CHARS else shown(name) for name in list(columns)[:MAX_NAMES]
    ]
    if len(columns) > MAX_NAMES:
        names.append(f"... and {len(columns) - MAX_NAMES:,} more")
    return ", ".join(names) or "none"


def row_error(text: str, place: Place, hint: str = "", cause: RejectionReason = RejectionReason.FORMAT) -> RowError:
    """The error for a row that does not fit its format."""
    return RowError(cause, text, place=str(place), hint=hint)


def holds_something(value: Any) -> bool:
    """Whether a value says anything: not null, not-a-number (how tables write null), blank text or an empty container.

    >>> [holds_something(value) for value in (None, float("nan"), " ", [], 0, False, "a")]
    [False, False, False, False, True, True, True]
    """
    if value is None or value != value:
        return False
    if isinstance(value, str):
        return bool(value) and not value.isspace()
    return not (isinstance(value, list | dict) and not value)


def without_nulls(value: Any) -> Any:
    """The value without the keys that hold null: a file with one schema for all rows has every key in every row.

    >>> without_nulls([{"name": "f", "arguments": {"city": "Bonn", "zip": None}}])
    [{'name': 'f', 'arguments': {'city': 'Bonn'}}]
    """
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def has_null_keys(value: Any) -> bool:
    """Whether `without_nulls` would take anything out."""
    if isinstance(value, dict):
        return any(item is None or has_null_keys(item) for item in value.values())
    return isinstance(value, list) and any(map(has_null_keys, value))
