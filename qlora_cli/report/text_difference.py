"""Two texts, and which words of each the other does not have."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from qlora_cli.web_page import text_as_html

WORD = re.compile(r"\s+|\w+|[^\w\s]")
MIN_EQUAL = 3
"""Words and signs in a row that both texts must have to count as the same, in the middle of differences."""

MAX_WORDS = 1500
"""Longer texts are shown without marks: comparing takes the square of their length."""


def marked(before: str, after: str) -> tuple[str, str]:
    """Both texts as HTML: what only the first has is `<del>`, what only the second has is `<ins>`.

    >>> marked("it is 42.", "it is <43>.")
    ('it is <del>42</del>.', 'it is <ins>&lt;43&gt;</ins>.')
    """
    one, other = WORD.findall(before), WORD.findall(after)
    if max(len(one), len(other)) > MAX_WORDS:
        return text_as_html(before), text_as_html(after)
    runs = _without_islands(SequenceMatcher(None, one, other, autojunk=False).get_opcodes(), one)
    return (
        "".join(_side(one, [(kind, start, end) for kind, start, end, _, _ in runs], "del")),
        "".join(_side(other, [(kind, start, end) for kind, _, _, start, end in runs], "ins")),
    )


Run = tuple[str, int, int, int, int]


def _without_islands(runs: Sequence[Run], words: Sequence[str]) -> list[Run]:
    """The runs with equal ones of a word or two between differences made part of these: such are equal by chance."""
    kept: list[Run] = []
    for number, run in enumerate(runs):
        kind, start, end, other_start, other_end = run
        is_inside = 0 < number < len(runs) - 1
        if kind == "equal" and is_inside and _num_words(words[start:end]) < MIN_EQUAL:
            run = ("replace", start, end, other_start, other_end)
        kept.append(run)
    return kept


def _num_words(words: Sequence[str]) -> int:
    return sum(not word.isspace() for word in words)


def _side(words: Sequence[str], runs: Sequence[tuple[str, int, int]], mark: str) -> Iterator[str]:
    for kind, start, end in runs:
        text = "".join(words[start:end])
        if not text:
            continue
        is_marked = kind != "equal" and not text.isspace()
        yield f"<{mark}>{text_as_html(text)}</{mark}>" if is_marked else text_as_html(text)
