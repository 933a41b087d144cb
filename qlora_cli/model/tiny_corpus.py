"""The text that a tiny base learns from: files, or the English help pages that come with every Python."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qlora_cli.errors import ArgumentError
from qlora_cli.recipe.shipped_data import shipped_data

READABLE_SUFFIXES = (".txt", ".md", ".json", ".jsonl")


def read_corpus(files: Sequence[Path]) -> list[str]:
    """The documents of `files`, or Python's own help topics (about 460,000 characters) when there are none.

    The demo's `recipes/data/mailbox.txt` is found from any directory.

    Raises:
        ArgumentError: for a file that is missing, of an unknown kind, not readable as such, or without text.
    """
    if not files:
        return python_help_topics()
    documents: list[str] = []
    for given in files:
        file = shipped_data(given) or given
        found = [text for text in read_documents(file) if text.strip()]
        if not found:
            raise ArgumentError("the corpus file holds no text", place=str(file))
        documents += found
    return documents


def python_help_topics() -> list[str]:
    """The reference pages behind `help()`, in the order of their names; each is one document."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def read_documents(file: Path) -> list[str]:
    """A text file is one document; each row of a JSON or JSONL file is one, all its strings a paragraph each."""
    if file.suffix not in READABLE_SUFFIXES:
        raise ArgumentError(
            f"a corpus file ends in {', '.join(READABLE_SUFFIXES)}; this one ends in '{file.suffix}'",
            place=str(file),
            hint="give the text as one of these",
        )
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ArgumentError("no such corpus file", place=str(file), hint="check the path after --corpus") from None
    except UnicodeDecodeError as error:
        raise ArgumentError(
            f"the corpus file is not UTF-8: {error.reason} at byte {error.start}", place=str(file)
        ) from None
    if file.suffix in (".txt", ".md"):
        return [text]
    return ["\n\n".join(strings_in(row)) for row in _parse_rows(file, text)]


def strings_in(value: Any) -> Iterator[str]:
    """Every string value in a JSON value, depth first, keys left out.

    >>> list(strings_in({"question": "2+2?", "turns": [{"text": "4", "score": 1.0}]}))
    ['2+2?', '4']
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings_in(item)


def paragraphs(document: str) -> list[str]:
    """The parts of a document between blank lines.

    >>> paragraphs("A title\\n\\nText of\\ntwo lines.\\n\\n\\n")
    ['A title', 'Text of\\ntwo lines.']
    """
    return [part.strip() for part in re.split(r"\n\s*\n", document) if part.strip()]


def _parse_rows(file: Path, text: str) -> list[Any]:
    if file.suffix == ".json":
        rows = _parse_json(text, place=str(file))
        return rows if isinstance(rows, list) else [rows]
    lines = enumerate(text.splitlines(), start=1)
    return [_parse_json(line, place=f"{file}:{number}") for number, line in lines if line.strip()]


def _parse_json(text: str, *, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ArgumentError(f"not JSON: {error}", place=place) from None
