"""The form of a task: questions that are put to one model after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from qlora_cli.data.render.renderer import Renderer
from qlora_cli.evaluate.scores import TaskScores
from qlora_cli.evaluate.work import Work
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
