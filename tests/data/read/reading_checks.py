"""Reads a file the whole way to examples and checks that every fault is one that a user can look up."""

from __future__ import annotations

import gzip
import json
import re
import zlib

from qlora_cli.data.example import Conversation
from qlora_cli.data.read.formats import resolve_format, to_example
from qlora_cli.data.read.sources import parse_row, read_raw
from qlora_cli.data.rejection import RowError
from qlora_cli.errors import DataError
from qlora_cli.recipe.data_schema import SourceSection

LINES_KINDS = (".jsonl", ".json", ".csv")


def read_whole(path):
    """All examples of the file, and the problems of rows and of the file.

    Raises:
        AssertionError: a problem that names no place of the file, or is not said in one line.
    """
    examples, problems = [], []
    layout = ""
    try:
        for raw in read_raw(SourceSection(path=str(path))):
            try:
                row = parse_row(raw)
                layout = layout or resolve_format(None, {}, row, raw.place)
                examples.append(to_example(row, raw.place, layout, {}))
            except RowError as error:
                problems += error.problems  # the errors themselves would hold every row
    except DataError as error:
        problems += error.problems
    num_lines = count_lines(path)
    for problem in problems:
        check_place(problem.place, path, num_lines)
        assert "\n" not in problem.text + problem.hint, f"more than one line: {problem}"
        assert len(problem.text) < 1000, f"{len(problem.text)} characters"
        problem.text.encode()
    for example in examples:
        check_text(example)
    return examples, problems


def check_place(place, path, num_lines):
    """The place is the file, and a line in it where it has lines."""
    match = re.fullmatch(re.escape(str(path)) + r"(?::(\d+)|#row (\d+))?", place)
    assert match, f"a place elsewhere: {place}"
    line, row = match.groups()
    assert row is None or int(row) >= 1
    has_lines = path.name.removesuffix(".gz").endswith(LINES_KINDS)
    assert (line is not None) == has_lines, f"a line is named where there are none, or none where there are: {place}"
    assert line is None or 1 <= int(line) <= num_lines, f"the file has {num_lines} lines: {place}"


def check_text(example):
    """What goes to the tokenizer can be written as JSON and as UTF-8."""
    is_chat = isinstance(example, Conversation)
    held = [example.messages, example.tools] if is_chat else [example.prompt, example.completion]
    json.dumps(held, ensure_ascii=False, allow_nan=False, default=str).encode()


def count_lines(path):
    """Lines of the file, counted from 1, in the way that counts most: a carriage return ends one, too."""
    return len(re.findall(rb"\r\n|\r|\n", unpacked(path))) + 1


def unpacked(path):
    """Its bytes; of a gzip file, those in front of a fault."""
    if not path.name.endswith(".gz"):
        return path.read_bytes()
    content = bytearray()
    try:
        with gzip.open(path) as file:
            while piece := file.read1(512):
                content += piece
    except (OSError, EOFError, zlib.error):
        pass
    return bytes(content)
