"""Prompts with known answers, read from the same files as training data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from qlora_cli.choices import ExchangeFormat
from qlora_cli.constants import IGNORE_INDEX
from qlora_cli.data.example import Conversation, Example, PlainText
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.errors import DataError


@dataclass(frozen=True)
class Question:
    """One prompt of a task and the answer it should get."""

    prompt: str
    """Text for the user: the last turn before the answer."""

    prompt_ids: list[int]
    """Text for the model: the exact prefix of a training row."""

    reference: str
    place: str = ""
    """`file:line` of the row."""

    is_chat: bool = True
    """Whether the chat template renders it."""


def to_question(example: Example, renderer: Renderer) -> Question:
    """The last assistant turn (or the completion) as reference, and what comes before it as prompt.

    Raises:
        DataError: if the conversation does not end with an assistant's text, or there is no prompt.
    """
    if not isinstance(example, Conversation):
        return _continuation(example, renderer)
    *before, last = example.messages
    reference = last.get("content")
    if last["role"] != "assistant" or not isinstance(reference, str) or not before:
        raise DataError(
            "the row does not end with a prompt and the assistant's answer as text",
            place=str(example.place),
            hint="end each conversation with an assistant turn",
        )
    prompt_ids = renderer.prompt_ids(before, example.tools)
    return Question(as_text(before[-1].get("content")), prompt_ids, reference, str(example.place))


def _continuation(example: PlainText, renderer: Renderer) -> Question:
    if not example.prompt:
        raise DataError(
            "the row is running text, without a prompt and an answer",
            place=str(example.place),
            hint=f"use one of the formats {', '.join(get_args(ExchangeFormat))}",
        )
    [row] = renderer.render([example])
    is_prompt = [label == IGNORE_INDEX for label in row.labels]
    prompt_ids = row.input_ids[: is_prompt.index(False)]
    return Question(example.prompt, prompt_ids, example.completion, str(example.place), is_chat=False)


def as_text(content: object) -> str:
    """The content of a message where it is text."""
    return content if isinstance(content, str) else ""
