"""Special tokens that the text of a message spells, such as `<|im_end|>` or `</s>`: they stay text.

A user who types `<|im_end|>` must not end the turn. Each such token in a message is hidden from the template
and the tokenizer by one private-use character, and its letters come back where the text is cut into tokens:

    content           What does <|im_end|> do?
    rendered          <|im_start|>user\\nWhat does \\U000f0000 do?<|im_end|>\\n
    plain stretch                  [------------------------]
    tokens            the stretch's letters, with the tokenizer set to take special tokens for text

Only tokens that the tokenizer calls special are meant; `<think>` or `<tool_call>`, where they are merely added, stay
what the template makes of them. So do, in an answer, special tokens that the template itself looks for there, as many
look for `</think>`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken

from qlora_cli.data.example import Message
from qlora_cli.data.render.generation_prompt import Tools
from qlora_cli.data.render.traced_template import Span

_FIRST_STAND_IN = 0xF0000  # the last but one private-use plane
_NEVER = re.compile(r"(?!)")

_Tree = dict[str, "_Tree"]
"""Letter -> what may follow; the empty string where a word ends."""

Originals = Mapping[int, str]
"""Code point of a stand-in -> the special token it stands for, as `str.translate` reads it."""


class SpecialText:
    """Finds one tokenizer's special tokens in the text of messages."""

    def __init__(self, added_tokens: Sequence[AddedToken], markup: Collection[str] = ()) -> None:
        """
        Args:
            added_tokens: of the tokenizer.
            markup: words that the template looks for in an answer, such as `</think>`; there they are not mere text.
        """
        special = [token for token in added_tokens if token.special and token.content.strip()]
        self._token = _any_of([token.content for token in special])
        self._token_in_answer = _any_of([token.content for token in special if token.content not in markup])
        self._takes_spaces = {token.content: (token.lstrip, token.rstrip) for token in special}

    def find(self, messages: Sequence[Message], tools: Tools = None) -> str | None:
        """The first special token in the text of the messages, their tool calls, or the tools."""
        for message in messages:
            search = self._pattern_for(message).search
            content = message.get("content")
            texts = [content] if len(message) == 2 and isinstance(content, str) else _strings(message)
            for text in texts:
                if found := search(text):
                    return found[0]
        if tools is None:
            return None
        return next((found[0] for text in _strings(tools) if (found := self._token.search(text))), None)

    def stand_in(self, messages: Sequence[Message], tools: Tools) -> tuple[list[Message], Tools, Originals]:
        """The messages and tools with a private-use character for each special token.

        >>> end = AddedToken("</s>", special=True)
        >>> SpecialText([end]).stand_in([{"role": "user", "content": "a</s>"}], None)
        ([{'role': 'user', 'content': 'a\U000f0000'}], None, {983040: '</s>'})
        """
        characters: dict[str, str] = {}

        def character(found: re.Match[str]) -> str:
            return characters.setdefault(found[0], chr(_FIRST_STAND_IN + len(characters)))

        def replaced(value: Any, pattern: re.Pattern[str]) -> Any:
            if isinstance(value, str):
                return pattern.sub(character, value)
            if isinstance(value, Mapping):
                return {key: replaced(item, pattern) for key, item in value.items()}
            return [replaced(item, pattern) for item in value] if isinstance(value, list | tuple) else value

        stood_in = [replaced(message, self._pattern_for(message)) for message in messages]
        stood_in_tools = replaced(tools, self._token)
        return stood_in, stood_in_tools, {ord(stand_in): token for token, stand_in in characters.items()}

    def _pattern_for(self, message: Message) -> re.Pattern[str]:
        return self._token_in_answer if message["role"] == "assistant" else self._token

    def plain_stretches(self, text: str, originals: Originals) -> list[Span]:
        """The stretches with stand-ins, from one special token that the template wrote to the next.

        >>> end = AddedToken("</s>", special=True)
        >>> SpecialText([end]).plain_stretches("A</s>B\\U000f0000</s>", {0xF0000: "</s>"})
        [(5, 7)]
        """
        edges = [0]
        for found in self._token.finditer(text):
            takes_before, takes_after = self._takes_spaces[found[0]]
            before = text[edges[-1] : found.start()]
            edges.append(edges[-1] + len(before.rstrip() if takes_before else before))
            edges.append(_end_of_spaces(text, found.end()) if takes_after else found.end())
        edges.append(len(text))
        stretches = zip(edges[::2], edges[1::2], strict=True)
        return [(start, end) for start, end in stretches if any(ord(letter) in originals for letter in text[start:end])]


def _end_of_spaces(text: str, start: int) -> int:
    while start < len(text) and text[start].isspace():
        start += 1
    return start


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    """Finds the longest of the words at a place; with thousands as fast as with one, since they are made a tree.

    >>> _any_of(["<s>", "<s><s>", "<sep>"]).pattern
    '<s(?:>(?:<s>)?|ep>)'
    """
    tree: _Tree = {}
    for word in words:
        node = tree
        for letter in word:
            node = node.setdefault(letter, {})
        node[""] = {}
    return re.compile(_pattern(tree)) if tree else _NEVER


def _pattern(node: _Tree) -> str:
    branches = [re.escape(letter) + _pattern(rest) for letter, rest in node.items() if letter]
    if not branches:
        return ""
    pattern = "|".join(branches)
    is_end = "" in node
    return pattern if len(branches) == 1 and not is_end else f"(?:{pattern})" + ("?" if is_end else "")


def _strings(value: Any) -> Iterator[str]:
    """All text inside a JSON value, but not the keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
