"""Rows of JSON and JSON Lines files, each with the line it starts on.

Read with the standard library, not with `datasets`: that unifies the rows of a file into one schema (a tool call's
arguments come back padded with nulls), knows no line numbers, and caches by path.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from qlora_cli.data.example import Place
from qlora_cli.data.problems import RowProblems
from qlora_cli.data.text_files import decode_utf8, read_lines, read_text
from qlora_cli.errors import DataError

Row = dict[str, Any]

_SPACE = re.compile(r"[ \t\r\n]*")
_STRING_OR_CONSTANT = re.compile(r'"(?:\\.|[^"\\])*"|(-?\bInfinity\b|\bNaN\b)', re.DOTALL)
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class _RowError(ValueError):
    """A value that JSON parsers let pass and training must not."""


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        duplicate = next(key for key in keys if keys.count(key) > 1)
        raise _RowError(f"key '{duplicate}' stands twice in one object")
    return row


def _refuse_constant(constant: str) -> None:
    raise _RowError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_refuse_duplicate_keys, parse_constant=_refuse_constant)


def _line_at(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match is not None
    return match.end()


def _decode(text: str, position: int) -> tuple[Any, int]:
    """The JSON value at `position` and where it ends.

    Raises:
        DataError: with the line inside `text` as its place, e.g. "3".
    """
    try:
        value, end = _DECODER.raw_decode(text, position)
    except json.JSONDecodeError as error:
        hint = "JSON needs double quotes, no trailing comma and no comments"
        raise DataError(
            f"broken JSON: {error.msg} (column {error.colno})", place=str(error.lineno), hint=hint
        ) from error
    except RecursionError as error:
        raise DataError("nested too deeply", place=str(_line_at(text, position))) from error
    except ValueError as error:  # _RowError, or an integer of more than 4,300 digits
        fault_at = position
        if "is not JSON" in str(error):
            constants = (match for match in _STRING_OR_CONSTANT.finditer(text, position) if match.group(1))
            fault_at = next((match.start() for match in constants), position)
        raise DataError(str(error), place=str(_line_at(text, fault_at))) from error
    if _SURROGATE_ESCAPE.search(text, position, end):
        _refuse_lone_surrogates(value, _line_at(text, position))
    return value, end


def _refuse_lone_surrogates(value: Any, line: int) -> None:
    """Half a surrogate pair cannot be written as UTF-8, so no tokenizer takes it."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            "half of a surrogate pair (\\ud800-\\udfff) in a string",
            place=str(line),
            hint="write the character itself, or both halves of the pair",
        ) from error


def _not_an_object(value: Any) -> str:
    names = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "a boolean"}
    return f"a row must be an object, found {names.get(type(value), 'null')}"


def read_jsonl(path: Path) -> list[tuple[Place, Row]]:
    """One JSON object a line; blank lines are skipped.

    Raises:
        DataError: every line that is not one (the first 20 in full).
    """
    rows: list[tuple[Place, Row]] = []
    problems = RowProblems()
    is_empty = True
    for line, raw, offset in read_lines(path):
        is_empty = False
        place = Place(str(path), line, len(rows) + 1)
        try:
            text = decode_utf8(raw, path, line=line, offset=offset)
        except DataError as error:
            problems.add_error(error)
            continue
        try:
            start = _skip_space(text, 0)
            value, end = _decode(text, start)
        except DataError as error:
            problem = error.problems[0]
            hint = problem.hint
            if line == 1 and text.strip() == "[":
                hint = "this is a JSON array over several lines: name the file .json"
            problems.add(problem.text, place, hint)
            continue
        rest = text[end:].strip()
        if not isinstance(value, dict):
            problems.add(_not_an_object(value), place, "put one {...} on each line, or name the file .json")
        elif rest:
            problems.add(f"text after the object: {rest[:20]!r}", place, "put one {...} on each line")
        else:
            rows.append((place, value))
    if is_empty:
        problems.add("the file is empty", f"{path}:1", "give a file with at least one row")
    problems.raise_if_any()
    return rows


def read_json(path: Path) -> list[tuple[Place, Row]]:
    """An array of objects, or objects one after the other (JSON lines under the name .json).

    Raises:
        DataError: with the line of the fault.
    """
    text = read_text(path)
    start = _skip_space(text, 0)
    try:
        if text[start] == "[":
            return _read_array(text, start, path)
        if text[start] == "{":
            return _read_objects(text, start, path)
        value, _ = _decode(text, start)
    except DataError as error:
        problem = error.problems[0]
        if not problem.place.isdecimal():
            raise
        raise DataError(problem.text, place=f"{path}:{problem.place}", hint=problem.hint) from error
    raise DataError(
        f"the file must hold an array of objects; {_not_an_object(value)}",
        place=f"{path}:{_line_at(text, start)}",
        hint="write [{...}, {...}], or one {...} a line in a .jsonl file",
    )


def _read_objects(text: str, position: int, path: Path) -> list[tuple[Place, Row]]:
    rows: list[tuple[Place, Row]] = []
    line, counted = 1, 0
    while position < len(text):
        line += text.count("\n", counted, position)
        counted = position
        value, end = _decode(text, position)
        if not isinstance(value, dict):
            raise DataError(_not_an_object(value), place=str(line))
        rows.append((Place(str(path), line, len(rows) + 1), value))
        position = _skip_space(text, end)
    return rows


def _read_array(text: str, opening: int, path: Path) -> list[tuple[Place, Row]]:
    """Rows of the array that opens at `opening`."""
    rows: list[tuple[Place, Row]] = []
    problems = RowProblems()
    line, counted = 1, 0
    position = _skip_space(text, opening + 1)
    if text[position : position + 1] == "]":
        raise DataError("the array holds no rows", place=str(_line_at(text, position)))
    while True:
        line += text.count("\n", counted, position)
        counted = position
        if text[position : position + 1] == "]":
            raise DataError("trailing comma before ]", place=str(line), hint="delete the last comma")
        value, end = _decode(text, position)
        if isinstance(value, dict):
            rows.append((Place(str(path), line, len(rows) + 1), value))
        else:
            problems.add(_not_an_object(value), f"{path}:{line}")
        position = _skip_space(text, end)
        separator = text[position : position + 1]
        if separator == "]":
            break
        if separator != ",":
            problem = f"expected , or ] after the row, found {separator!r}" if separator else "the array never closes"
            raise DataError(
                problem, place=str(_line_at(text, position)), hint="is the file cut off?" if not separator else ""
            )
        position = _skip_space(text, position + 1)
    rest = _skip_space(text, position + 1)
    if rest < len(text):
        raise DataError("text after the closing ]", place=str(_line_at(text, rest)))
    problems.raise_if_any()
    return rows
