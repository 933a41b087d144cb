"""Short forms that a recipe may use, turned into the one form that the schema holds."""

from __future__ import annotations

import datetime
import os
from typing import Annotated, Any

from pydantic import BeforeValidator, Field


def as_source(value: Any) -> Any:
    """The shorthand `train: data.jsonl` stands for `train: [{path: data.jsonl}]`."""
    if isinstance(value, str):
        return ({"path": value},)
    if isinstance(value, dict):
        return (value,)
    if isinstance(value, list):
        return tuple({"path": item} if isinstance(item, str) else item for item in value)
    return value


def as_tuple(value: Any) -> Any:
    """YAML's list as the tuple that a frozen section holds."""
    return tuple(value) if isinstance(value, list) else value


def as_float(value: Any) -> Any:
    """A whole number where a number is asked for: `2` stands for `2.0`; true and false do not."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if is_whole else value


def as_tuples(value: Any) -> Any:
    """The lists among the values of a mapping as tuples."""
    return {key: as_tuple(item) for key, item in value.items()} if isinstance(value, dict) else value


def in_home(value: Any) -> Any:
    """A path that begins with `~`, with the home directory in its place."""
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value


def as_date(value: Any) -> Any:
    """A day as `2026-11-28`; there must be such a day."""
    if isinstance(value, str):
        datetime.date.fromisoformat(value)
    return value


Day = Annotated[
    str,
    Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$", json_schema_extra={"format": "date"}),
    BeforeValidator(as_date),
]
Number = Annotated[float, BeforeValidator(as_float), Field(allow_inf_nan=False)]
FolderOrId = Annotated[str, BeforeValidator(in_home)]
Names = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]
Scalar = bool | int | float | str
LeftOut = Annotated[dict[str, Scalar | tuple[Scalar, ...]], BeforeValidator(as_tuples)]
