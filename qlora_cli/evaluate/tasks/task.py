"""The form of a task: questions that are put to one model after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from qlora_cli.data.render.renderer import Renderer
from qlora_cli.errors import ArgumentError
from qlora_cli.evaluate.scores import TaskScores
from qlora_cli.evaluate.work import Work
from qlora_cli.model.embedding_limits import check_tokens, num_positions
from qlora_cli.model.tuned import Tuned


@dataclass(frozen=True)
class Subject:
    """A loaded model that tasks are put to."""

    name: str
    """In tables: `base`, `tuned`, or the name of its folder."""

    tuned: Tuned
    key: str
    """Hash over its weights and the precision in which they compute."""

    renderer: Renderer
    """Of its tokenizer, with the day on which the run was trained for a template that prints the date."""


def first_too_long(subject: Subject, task: str, texts: Sequence[Sequence[int]], *, room: int = 0) -> int | None:
    """Index of the first text that the model's context does not hold with `room` more tokens; None where all fit.

    Raises:
        ArgumentError: if there is no text.
        RecipeError: if the model has no embedding for a token.
    """
    if not texts:
        raise ArgumentError(f"task '{task}' has no questions", hint="name a file with rows")
    tuned = subject.tuned
    check_tokens(tuned.model, tuned.tokenizer, tuned.source.model.base_model, lambda: max(map(max, texts)))
    context = num_positions(tuned.model.config)
    if context is None:
        return None
    return next((index for index, token_ids in enumerate(texts) if len(token_ids) + room > context), None)


class Task(Protocol):
    """A task; `run` is called once for each model, and what it returns is compared question by question."""

    name: str

    @property
    def num_steps(self) -> int:
        """Steps that the bar counts, for each model."""

    def check(self, subject: Subject) -> None:
        """Refuse what the model cannot be asked, before anything is computed.

        Raises:
            QloraError: with the place of the question.
        """

    def run(self, subject: Subject, work: Work) -> TaskScores:
        """Put the questions to a model; `work` knows what was computed before, and counts."""
