"""Generation tasks: prompts with known answers, read from the same files as training data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from qlora_cli.choices import ExchangeFormat
from qlora_cli.constants import IGNORE_INDEX
from qlora_cli.data.example import Conversation, Example, PlainText
from qlora_cli.data.read.column_mapping import Where
from qlora_cli.data.read.examples import read_examples
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.errors import DataError
from qlora_cli.evaluate.metrics import METRICS
from qlora_cli.recipe.data_schema import SourceSection
from qlora_cli.recipe.eval_schema import TaskSection


@dataclass(frozen=True)
class Question:
    """One prompt of a task and the answer it should get."""

    prompt: str
    """Text for the user: the last turn before the answer."""

    prompt_ids: list[int]
    """Text for the model: the exact prefix of a training row."""

    reference: str


@dataclass(frozen=True)
class Task:
    """Questions and how their answers are scored."""

    name: str
    questions: list[Question]
    metrics: tuple[str, ...]
    max_new_tokens: int


def load_task(section: TaskSection, renderer: Renderer, where: Where = "tasks") -> Task:
    """The task's questions; of each conversation only the last assistant turn is asked for.

    Args:
        section: of the recipe, or made of a command's options.
        renderer: of the model's tokenizer.
        where: what a hint on its columns is to be written under.

    Raises:
        DataError: if the file cannot be read, or a row has no answer to compare with.
    """
    source = SourceSection(path=section.path, format=section.format, columns=section.columns)
    examples = read_examples(source, section.limit, where=where)
    return Task(
        name=section.name or Path(section.path).stem,
        questions=[to_question(example, renderer) for example in examples],
        metrics=section.metrics,
        max_new_tokens=section.max_new_tokens,
    )


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
    return Question(_as_text(before[-1].get("content")), renderer.prompt_ids(before, example.tools), reference)


def _continuation(example: PlainText, renderer: Renderer) -> Question:
    if not example.prompt:
        raise DataError(
            "the row is running text, without a prompt and an answer",
            place=str(example.place),
            hint=f"use one of the formats {', '.join(get_args(ExchangeFormat))}",
        )
    [row] = renderer.render([example])
    is_prompt = [label == IGNORE_INDEX for label in row.labels]
    return Question(example.prompt, row.input_ids[: is_prompt.index(False)], example.completion)


def score_answers(answers: Sequence[str], task: Task) -> dict[str, float]:
    """The mean of each of the task's metrics over its questions, 0 to 1."""
    pairs = list(zip(answers, task.questions, strict=True))
    return {
        name: sum(METRICS[name](answer, question.reference) for answer, question in pairs) / len(pairs)
        for name in task.metrics
    }


def _as_text(content: object) -> str:
    return content if isinstance(content, str) else ""
