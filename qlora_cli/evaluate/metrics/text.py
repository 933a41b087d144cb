"""Scores of an answer as text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection

_LETTER_AFTER_WORDS = re.compile(
    r"(?:answer|option|choice)\b[ \t]*(?:is|was|would be|:|=)?[ \t]*[*_\"'(\[$\\{a-z]*?\b([A-Z])\b", re.IGNORECASE
)
_LETTER_FIRST = re.compile(r"[\s*_\"'(\[]*([A-Z])(?:[\])*_\"'.:,]|\s*$|\s*\n)")
_LETTER_IN_BRACKETS = re.compile(r"[(\[]([A-Z])[)\]]|\\boxed\{(?:\\text\{)?\(?([A-Z])\b")
_LETTER_ALONE = re.compile(r"(?<![\w'])([A-Z])(?![\w'])")


def exact_match(answer: str, reference: str) -> float:
    """1 if both are the same text after runs of white space are folded into one space and the ends stripped.

    Case and punctuation count.

    >>> exact_match(" team: sales\\n", "team:  sales"), exact_match("Team: sales", "team: sales")
    (1.0, 0.0)
    """
    return float(answer.split() == reference.split())


def contains(answer: str, reference: str) -> float:
    """1 if the reference is somewhere in the answer, white space folded and case ignored.

    >>> contains("The capital is Paris.", "paris"), contains("It is Rome.", "Paris")
    (1.0, 0.0)
    """
    return float(_folded(reference) in _folded(answer))


def regex(answer: str, reference: str) -> float:
    """1 if the reference, a regular expression as Python reads it, is found in the answer.

    `.` does not match a line end, and `^` and `$` match at those of lines.

    >>> regex("Ticket 4711 is open.", r"Ticket \\d{4}"), regex("No ticket.", r"Ticket \\d{4}")
    (1.0, 0.0)
    """
    return float(re.search(reference, answer, re.MULTILINE) is not None)


def regex_fault(reference: str) -> str | None:
    """Why the reference is no pattern.

    >>> regex_fault("a+"), regex_fault("(a")
    (None, 'is not a regular expression: missing ), unterminated subpattern at position 0')
    """
    try:
        re.compile(reference, re.MULTILINE)
    except re.error as fault:
        return f"is not a regular expression: {fault}"
    return None if reference else "is empty, and an empty pattern is found in every answer"


def choice(answer: str, reference: str) -> float:
    """1 if both choose the same letter.

    >>> choice("The answer is (B).", "B"), choice("B. Paris", "B) Paris"), choice("I do not know", "B")
    (1.0, 1.0, 0.0)
    """
    expected = chosen_letter(reference)
    return float(expected is not None and chosen_letter(answer) == expected)


def chosen_letter(text: str) -> str | None:
    """The letter that a text chooses; None where it chooses none, or more than one stands alone.

    Looked for in this order: behind the last "answer is", "answer:", "option" or "choice"; at the very beginning, with
    a bracket, a point, a colon or nothing behind it; the last one in brackets; the only capital that stands alone.

    >>> [chosen_letter(text) for text in ("**C**", "So the answer is: D", "A cat sat", "either (A) or (B): (B)", "b")]
    ['C', 'D', 'A', 'B', None]
    >>> chosen_letter("I think that A dog and B cat are both right")
    """
    behind_words = [letter for letter in _LETTER_AFTER_WORDS.findall(text) if letter.isupper()]
    if behind_words:
        return str(behind_words[-1])
    first = _LETTER_FIRST.match(text)
    if first is not None:
        return first[1]
    bracketed = [one or other for one, other in _LETTER_IN_BRACKETS.findall(text)]
    if bracketed:
        return str(bracketed[-1])
    alone = set(_LETTER_ALONE.findall(text)) - {"I"}
    return alone.pop() if len(alone) == 1 else None


def choice_fault(reference: str) -> str | None:
    """Why the reference chooses nothing.

    >>> choice_fault("C"), choice_fault("three")
    (None, 'names no letter to choose')
    """
    return None if chosen_letter(reference) else "names no letter to choose"


def normalized(text: str, ignored: Collection[str]) -> str:
    """The text without what is ignored.

    >>> normalized("Yes,  Sir!", ["case", "punctuation"]), normalized("a b", ["white_space"])
    ('yes  sir', 'ab')
    """
    if "case" in ignored:
        text = text.casefold()
    if "punctuation" in ignored:
        text = "".join(character for character in text if not unicodedata.category(character).startswith("P"))
    return "".join(text.split()) if "white_space" in ignored else text


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()
