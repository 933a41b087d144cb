"""A recipe as it was written, and conflicts between two of its settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qlora_cli.recipe.tree import PathPart

RawRecipe = dict[str, Any]
"""The recipe as written, as plain dicts and lists; keys whose values are faulty are left out."""


@dataclass(frozen=True)
class Conflict:
    """Two settings that cannot both hold."""

    path: tuple[PathPart, ...]
    """The setting to point at."""

    text: str
    hint: str

    others: tuple[str, ...] = ()
    """Dotted paths of the settings that exclude it."""

    weaker: tuple[tuple[PathPart, ...], ...] = ()
    """Those of all these that can be left out where another one was written over them: what says the same in another
    way (the length of a run), or has no effect beside the other."""


def at(written: RawRecipe, key: str) -> Any:
    """The value of a dotted key; None where it is not written."""
    value: Any = written
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def conflict(key: str, others: tuple[str, ...], text: str, hint: str, weaker: tuple[str, ...] = ()) -> Conflict:
    """A conflict at a dotted key."""
    return Conflict(tuple(key.split(".")), text, hint, others, tuple(tuple(one.split(".")) for one in weaker))


def sources(written: RawRecipe, key: str) -> Iterator[tuple[tuple[PathPart, ...], dict[str, Any]]]:
    """Each source or task under a key that is written out as a section, with its path."""
    value = at(written, key)
    path: tuple[PathPart, ...] = tuple(key.split("."))
    if isinstance(value, dict):
        yield path, value
    for index, item in enumerate(value if isinstance(value, list) else ()):
        if isinstance(item, dict):
            yield (*path, index), item


def is_local_folder(path: str) -> bool:
    return path.startswith((".", "/", "~")) or os.path.isdir(path)
