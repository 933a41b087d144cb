"""Contents of the columns of a few rows: kinds of value, and how informative they are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

ColumnKind = Literal["text", "scalar", "messages", "turns", "other"]
"""messages: lists of `role` and `content`; turns: lists of `from` and `value`; scalar: numbers and truth values."""

MAX_DEPTH = 3
"""Objects and lists that are looked into, one inside the other."""

_SIDE_WORDS = {"id", "ids", "idx", "index", "uuid", "guid", "hash", "url", "uri", "link", "timestamp", "date", "time"}
_SIDE_WORDS |= {"lang", "language", "split", "source", "category", "subject", "subset", "topic", "tag", "tags", "type"}
_SIDE_WORDS |= {"license", "score", "scores", "rating", "model", "file", "filename", "path", "author", "user_id"}
_SIDE_WORDS |= {"level", "difficulty", "count", "num", "length", "rank", "start", "end", "embedding", "name", "names"}
_SIDE_WORDS |= {"rejected", "reject", "distractor", "distractor1", "distractor2", "distractor3", "incorrect", "wrong"}
"""Words in the names of columns that say something about a row and are not what is trained."""


@dataclass(frozen=True)
class Column:
    """One column of a source, or a value inside an object, e.g. `answers.text[0]`."""

    name: str
    kind: ColumnKind
    mean_chars: float
    """Of its text; 0 for other kinds."""

    is_constant: bool
    """Whether all rows that were looked at hold the same, as a column of one category does."""

    is_code: bool
    """Whether its text never holds a space and differs in each row, as ids do."""

    is_nested: bool = False
    """Whether it is inside the value of a column."""

    @property
    def words(self) -> list[str]:
        """The words of the name, lower case.

        >>> Column("answers.bestAnswer[0]", "text", 1.0, False, False).words
        ['answers', 'best', 'answer', '0']
        """
        spread = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", self.name)
        return re.findall(r"[^\W_]+", spread.lower())

    @property
    def is_aside(self) -> bool:
        """Whether it only says something about the row: an id, a date, a category."""
        is_named_so = not _SIDE_WORDS.isdisjoint(self.words)
        return is_named_so or self.is_code or self.is_constant


def profile(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The columns of the rows in order, those inside objects behind all others."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [_column(name, [row.get(name) for row in rows]) for name in names]
    inside: dict[str, list[Any]] = {}
    for row in rows:
        for name in names:
            for path, value in _inside(row.get(name), name, 0):
                inside.setdefault(path, []).append(value)
    return columns + [_column(path, values, is_nested=True) for path, values in inside.items()]


def _inside(value: Any, name: str, depth: int) -> Iterator[tuple[str, Any]]:
    """The plain values in an object, with the paths that lead there; of a list only the first."""
    if depth and isinstance(value, str | int | float):
        yield name, value
    elif isinstance(value, dict) and depth < MAX_DEPTH:
        for key, item in value.items():
            yield from _inside(item, f"{name}.{key}", depth + 1)
    elif isinstance(value, list) and value and depth < MAX_DEPTH and kind_of_list(value) == "other":
        yield from _inside(value[0], f"{name}[0]", depth + 1)


def _column(name: str, values: Sequence[Any], *, is_nested: bool = False) -> Column:
    present = [value for value in values if value is not None and value != ""]
    kinds = {_kind(value) for value in present}
    kind: ColumnKind = kinds.pop() if len(kinds) == 1 else "other"
    texts = [value for value in present if isinstance(value, str)] if kind == "text" else []
    distinct = len(set(texts))
    return Column(
        name,
        kind,
        mean_chars=sum(map(len, texts)) / len(texts) if texts else 0.0,
        is_constant=len(texts) > 2 and distinct == 1,
        is_code=bool(texts) and distinct == len(texts) and all(_looks_like_an_id(text) for text in texts),
        is_nested=is_nested,
    )


def _kind(value: Any) -> ColumnKind:
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool | int | float):
        return "scalar"
    return kind_of_list(value) if isinstance(value, list) else "other"


def kind_of_list(value: list[Any]) -> ColumnKind:
    """`messages` or `turns` where every item is one."""
    if value and all(isinstance(item, dict) for item in value):
        if all("role" in item and ("content" in item or "tool_calls" in item) for item in value):
            return "messages"
        if all("from" in item and "value" in item for item in value):
            return "turns"
    return "other"


def _looks_like_an_id(text: str) -> bool:
    """
    >>> [_looks_like_an_id(text) for text in ("5727cc15ff5b5019007d94f2", "train-17", "42", "Paris")]
    [True, True, True, False]
    """
    return not re.search(r"\s", text) and bool(re.search(r"\d", text)) and bool(re.fullmatch(r"[\w./:#-]+", text))
