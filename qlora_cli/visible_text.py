"""Text from outside, such that nothing in it acts on a terminal or a page, or is read otherwise than it is stored."""

from __future__ import annotations

import unicodedata

LINE_END = "↵"

CHANGES_DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that make text read differently from how it is stored (Boucher and Anderson 2021, arXiv:2111.00169)."""


def visible(text: str, *, is_each_seen: bool = False) -> str:
    """Text in which no character acts on the terminal or turns the reading direction.

    Args:
        text: as it was decoded.
        is_each_seen: show spaces, tabs, line ends and all that does not print by a sign, too.

    >>> visible("a\\r\\n\\tb\\x1b[2J"), visible(" a b\\n\\u200b", is_each_seen=True)
    ('a\\\\r\\n\\tb\\\\x1b[2J', '␣a␣b↵\\\\u200b')
    """
    if text.isprintable() and not is_each_seen:
        return text
    return "".join(map(_seen if is_each_seen else _harmless, text))


def _harmless(char: str) -> str:
    if char in "\n\t":
        return char
    return _escaped(char) if unicodedata.category(char) in ("Cc", "Cs") or char in CHANGES_DIRECTION else char


def _seen(char: str) -> str:
    signs = {" ": "␣", "\n": LINE_END, "\t": "⇥"}
    return signs.get(char) or (char if char.isprintable() else _escaped(char))


def _escaped(char: str) -> str:
    """As Python writes it: `\\r`, `\\x1b`, `\\u202e`."""
    return char.encode("unicode_escape").decode("ascii")
