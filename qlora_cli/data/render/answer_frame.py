"""Text that a chat template prints around an answer, and the mark that parts reasoning from it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from qlora_cli.data.example import Message
from qlora_cli.data.render.generation_prompt import STAND_IN
from qlora_cli.errors import DataError

Render = Callable[[Sequence[Message], bool], str]
"""(messages, whether the generation prompt is added) -> text."""

REASONING = "\U0010fa04"
"""A private-use character in place of reasoning."""

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message in which templates read its reasoning: Qwen3 and GLM-4.5, Nemotron, gpt-oss."""

SPLITS = re.compile(
    r"""split\(\s*(?P<quote>['"])(?P<mark>.+?)(?P=quote)|(?P<other>['"])(?P<looked_for>[^'"]+?)(?P=other)\s+in\b"""
)
"""A literal at which a template cuts the text of a message."""


@dataclass(frozen=True)
class AnswerFrame:
    """Text that a template prints in an assistant's turn beside the message's own; white space at its ends is off.

    A model that was trained on such turns says that text too, so an answer is scored without it.
    """

    lead: str = ""
    """Printed before the answer: `<think>`, an empty line and `</think>` by Qwen3."""

    tail: str = ""
    """Printed behind it, the end of the turn included."""

    opening: str = ""
    """Printed before reasoning."""

    closing: str = ""
    """Printed between reasoning and answer; empty where the template knows no reasoning."""

    opens_in_prompt: bool = False
    """Whether the generation prompt opens the reasoning already, as DeepSeek-R1's does."""


def find_answer_frame(template: str, render: Render) -> AnswerFrame:
    """The frame that `template` puts around the last answer, seen in what it prints for stand-ins.

    Reasoning is given under the keys that templates read it from, and in the text itself in front of each literal at
    which the template cuts a text: what goes missing then was taken for reasoning.

    Args:
        template: Jinja text.
        render: prints messages with it; raises DataError where it refuses them.
    """
    try:
        prompt = render(_ASKED, True)
        lead, tail, added = _around(render, prompt, {"content": STAND_IN})
    except (DataError, ValueError):
        return AnswerFrame()
    opening, closing = _reasoning_marks(render, prompt, lead) or _cut_marks(template, render, added)
    is_added = bool(added.strip()) and (not opening or opening in added)
    opens = bool(closing) and (is_added or (not opening and lead.strip().startswith(closing)))
    return AnswerFrame(lead.strip(), tail.strip(), opening or added.strip() * opens, closing, opens)


def marks_of_tokens(tokens: Iterable[str]) -> tuple[str, str] | None:
    """Marks around reasoning among a vocabulary's added tokens, for a template that says nothing of it.

    >>> marks_of_tokens(["<|im_end|>", "<think>", "</think>"]), marks_of_tokens(["<b>", "</b>"])
    (('<think>', '</think>'), None)
    """
    known = set(tokens)
    for closing in sorted(known):
        opening = closing.replace("/", "", 1)
        if closing != opening and opening in known and re.search("think|reason", closing, re.IGNORECASE):
            return opening, closing
    return None


_ASKED: list[Message] = [{"role": "user", "content": "?"}]


def _around(render: Render, prompt: str, answer: Message) -> tuple[str, str, str]:
    """Text of the turn before and behind the stand-in, and what the prompt has more than the turn's beginning.

    Raises:
        ValueError: if the stand-in is not printed once.
    """
    text = render([*_ASKED, {"role": "assistant", **answer}], False)
    shared = len(_shared_start(prompt, text))
    lead, tail = text[shared:].split(STAND_IN)
    return lead, tail, prompt[shared:]


def _shared_start(one: str, other: str) -> str:
    """
    >>> _shared_start("abc", "abd")
    'ab'
    """
    pairs = enumerate(zip(one, other, strict=False))
    return one[: next((at for at, (ours, theirs) in pairs if ours != theirs), min(len(one), len(other)))]


def _reasoning_marks(render: Render, prompt: str, lead: str) -> tuple[str, str] | None:
    """Marks around the reasoning that is given beside the content."""
    for key in REASONING_KEYS:
        try:
            with_reasoning, _, _ = _around(render, prompt, {"content": STAND_IN, key: REASONING})
            opening, between = with_reasoning.split(REASONING)
        except (DataError, ValueError):
            continue
        shared = _shared_start(lead[::-1], between[::-1])[::-1].strip()
        return opening.strip(), shared or between.strip()
    return None


def _cut_marks(template: str, render: Render, added: str) -> tuple[str, str]:
    """Marks around reasoning that stands in the content itself, and that the template leaves out of past answers."""
    for mark in _literals(template):
        try:
            text = render([*_ASKED, {"role": "assistant", "content": REASONING + mark + STAND_IN}], False)
        except DataError:
            continue
        if STAND_IN in text and REASONING not in text and mark.strip():
            return added.strip(), mark.strip()
    return "", ""


def _literals(template: str) -> Iterator[str]:
    """
    >>> list(_literals("{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"))
    ['</think>']
    """
    found = (match["mark"] or match["looked_for"] for match in SPLITS.finditer(template))
    yield from dict.fromkeys(literal.replace("\\n", "\n") for literal in found)
