"""Places where a rendered conversation prints each of its texts, found with marks and checked against the rendering.

The marked copy of a conversation (`leaves.py`) is rendered like the conversation itself. With the marks cut out, and
the numbers exchanged back, it must be the same text: then the template did the same with both, and where the marks
stood is where each text is printed. Where it is not the same, marks are tried kind by kind, then one by one. A text
whose own mark alone changes what the template prints is looked for as it is.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from qlora_cli.data.example import Message
from qlora_cli.data.render.generation_prompt import Tools
from qlora_cli.data.render.leaves import FIRST_NUMBER, Leaf, Marker, Marks
from qlora_cli.data.render.traced_template import Span
from qlora_cli.errors import DataError

Rendering = Callable[[list[Message], Tools], str]

MAX_TRIED_ALONE = 32
"""Marks of a kind that are tried one by one; the texts of longer lists are looked for as they are."""

MAX_CHARS_BEHIND_KEY = 80
"""Between the name of an argument and a value without a mark, such as true."""

_WORD = re.compile(r"\w+")
_ESCAPED = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|([nrtbf])|(.))", re.DOTALL)
_SPELLINGS = {
    "True": ("true", "True", "1", "yes"),
    "False": ("false", "False", "0", "no"),
    "None": ("null", "None", "nil"),
}


@dataclass
class Places:
    """The texts of a conversation, and where each is printed."""

    leaves: list[Leaf]
    of: list[list[Span]] = field(default_factory=list)
    """Of each leaf: every place in the rendering; none where it is lost, or printed in part."""

    is_certain: list[bool] = field(default_factory=list)
    """Of each leaf: whether a mark showed the places; others may be those of an equal text."""


def find_places(
    text: str, messages: Sequence[Message], tools: Tools, render: Rendering, markup: re.Pattern[str] | None
) -> Places:
    """Places of the conversation's texts in `text`, its rendering.

    Args:
        text: the conversation as the template prints it.
        messages: the conversation.
        tools: its tools.
        render: renders a copy of it in the same way; what the template refuses is a DataError.
        markup: words that the template looks for.
    """
    probe = _Probe(text, messages, tools, render, markup)
    found = probe.found()
    places = Places(probe.leaves)
    for leaf in probe.leaves:
        if leaf.mark is None:
            places.of.append(_behind_key(text, found.get(leaf.key_mark, []), leaf.text))
        elif leaf.mark in found:
            places.of.append(found[leaf.mark])
        else:
            places.of.append(_searched(text, leaf.text))
        places.is_certain.append(leaf.mark in found)
    return places


class _Probe:
    """One conversation and its marked copies."""

    def __init__(
        self, text: str, messages: Sequence[Message], tools: Tools, render: Rendering, markup: re.Pattern[str] | None
    ) -> None:
        self._text = text
        self._conversation = (messages, tools)
        self._render = render
        self._markup = markup
        self._marks = Marks.absent_from(text + repr(messages) + repr(tools))
        pattern = "|".join(f"{_escaped(mark)}([0-9]+){_escaped(mark)}" for mark in self._marks)
        self._mark = re.compile(f"{pattern}|{str(FIRST_NUMBER)[:-6]}([0-9]{{6}})(?:\\.0)?")
        marker = Marker(self._marks, markup, only=())
        marker.mark(messages, tools)
        self.leaves = marker.leaves
        self._by_mark = {leaf.mark: leaf for leaf in self.leaves if leaf.mark is not None}

    def found(self) -> dict[int | None, list[Span]]:
        """Places by mark; marks that change what the template prints have none."""
        everything = self._places(None)
        if everything is not None:
            return everything
        found: dict[int | None, list[Span]] = {}
        for group in self._groups():
            together = self._places(group)
            if together is not None:
                found |= together
                continue
            for number in group if len(group) <= MAX_TRIED_ALONE else ():
                found |= self._places([number]) or {}
        return found

    def _groups(self) -> list[list[int]]:
        """Marks by what they mark, those of keys apart from those of values."""
        groups: dict[object, list[int]] = {}
        for number, leaf in self._by_mark.items():
            groups.setdefault((leaf.kind, leaf.is_key), []).append(number)
        return list(groups.values())

    def _places(self, only: Iterable[int] | None) -> dict[int | None, list[Span]] | None:
        """Places of these marks, or None if the template prints the copy otherwise."""
        chosen = None if only is None else frozenset(only)
        marked, tools = Marker(self._marks, self._markup, chosen).mark(*self._conversation)
        try:
            printed = self._render(marked, tools)
        except DataError:
            return None
        found: dict[int | None, list[Span]] = {number: [] for number in (chosen or self._by_mark)}
        opened: dict[int, int] = {}
        parts: list[str] = []
        at = position = 0
        for mark in self._mark.finditer(printed):
            parts.append(printed[at : mark.start()])
            position += mark.start() - at
            at = mark.end()
            opening, closing, exchanged = mark.groups()
            number = int(opening or closing or exchanged)
            leaf = self._by_mark.get(number)
            if leaf is None:
                return None
            if opening:
                opened[number] = position
            elif exchanged:
                parts.append(leaf.text)
                position += len(leaf.text)
                found[number].append((position - len(leaf.text), position))
            else:
                start = position - len(leaf.text) if leaf.is_key else opened.pop(number, None)
                if start is not None:
                    found[number].append((max(0, start), position))
        parts.append(printed[at:])
        if "".join(parts) != self._text:
            return None
        return {
            number: [span for span in spans if holds(self._text[slice(*span)], self._by_mark[number])]
            for number, spans in found.items()
            if number is not None
        }


def _escaped(character: str) -> str:
    """Finds a character as it is, or as JSON escapes it."""
    return rf"(?:{character}|\\+u{ord(character):04x})"


def holds(printed: str, leaf: Leaf) -> bool:
    """Whether a text is complete where it is printed, with other escapes or other spaces at most.

    >>> from qlora_cli.data.render.leaves import LeafKind
    >>> leaf = Leaf(0, LeafKind.CONTENT, "", 'a "b"\\nc', 0)
    >>> holds('a "b"\\nc', leaf), holds('a \\\\"b\\\\"\\\\nc', leaf), holds('a "b"', leaf)
    (True, True, False)
    """
    if printed == leaf.text or leaf.is_key:
        return True
    words = _words(leaf.text)
    tried = printed
    for _ in range(3):  # JSON inside of JSON text is escaped twice
        if _words(tried) == words:
            return True
        tried = _ESCAPED.sub(_unescaped, tried)
    return _words(html.unescape(printed)) == words


def _words(text: str) -> list[str]:
    return _WORD.findall(text) or text.split()


def _unescaped(found: re.Match[str]) -> str:
    unicode, byte, control, other = found.groups()
    return chr(int(unicode or byte, 16)) if unicode or byte else "\n" if control else str(other)


def _behind_key(text: str, keys: Sequence[Span], value: str) -> list[Span]:
    """Places of true, false or null: right behind the key that they belong to."""
    places = []
    for _, end in keys:
        behind = text[end : end + MAX_CHARS_BEHIND_KEY]
        if any(spelling in behind for spelling in _SPELLINGS[value]):
            places.append((end, end))
    return places


def _searched(text: str, core: str) -> list[Span]:
    """Every place of a text, as it is or as JSON escapes it."""
    places = []
    for looked_for in {core, json.dumps(core)[1:-1], json.dumps(core, ensure_ascii=False)[1:-1]}:
        places += [(found.start(), found.end()) for found in re.finditer(re.escape(looked_for), text)]
    return sorted(places)
