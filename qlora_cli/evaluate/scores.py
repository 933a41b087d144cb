"""Scores of one model on a task, question by question: what intervals and verdicts are made of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

End = Literal["end", "length", "reasoning"]
"""How an answer ended: by itself, at its longest length, or within its reasoning."""


@dataclass(frozen=True)
class Measured:
    """One measure of one model: a figure over all questions, sum(values) / sum(weights)."""

    values: Sequence[float]
    """(Q,) of each question or row."""

    higher_is_better: bool
    unit: str
    """As `Measure` has it."""

    over: str
    weights: Sequence[float] | None = None
    """(Q,) tokens or bytes; None where each question counts as one."""

    rule: str | None = None
    total: float | None = None
    """The figure, where it is not the mean: it then has no interval of its own."""

    shown_as: Callable[[float], float] = lambda value: value
    """What is shown of figure and interval, such as exp of a loss."""

    is_judged: bool = True
    """Whether models are compared by it; not where another measure says the same."""

    @property
    def count(self) -> int:
        """Tokens, bytes or questions."""
        return len(self.values) if self.weights is None else round(sum(self.weights))

    def figure(self) -> float:
        """Over all questions.

        >>> Measured([1.0, 5.0], False, "nats", "tokens", [2, 1]).figure()
        2.0
        """
        if self.total is not None:
            return self.total
        return self.shown_as(math.fsum(self.values) / (len(self.values) if self.weights is None else sum(self.weights)))

    def of(self, indices: Sequence[int]) -> Measured:
        """The measure of some questions alone."""
        weights = None if self.weights is None else [self.weights[index] for index in indices]
        values = [self.values[index] for index in indices]
        return Measured(
            values,
            self.higher_is_better,
            self.unit,
            self.over,
            weights,
            self.rule,
            shown_as=self.shown_as,
            is_judged=self.is_judged,
        )


@dataclass(frozen=True)
class AnswerText:
    """An answer as it was given, and what of it was scored."""

    text: str
    scored: str | None
    """None where there is no answer, since its reasoning never ended."""

    ended: End

    @property
    def is_empty(self) -> bool:
        """Whether the model ended without a word."""
        return self.ended == "end" and not (self.scored or "").strip()


@dataclass(frozen=True)
class TaskScores:
    """All that one model got on a task."""

    questions: Sequence[str]
    """(Q,) identity of each question, the same for every model: its place in its file."""

    measures: dict[str, Measured]
    sources: Sequence[str] | None = None
    """(Q,) file of each row, where figures for each are wanted."""

    answers: Sequence[AnswerText] = ()
    """(Q,) of a task whose answers are generated."""

    rows: Sequence[dict[str, Any]] = field(default_factory=list)
    """(Q,) `prompt` and `reference` of each question, for the file of answers."""

    max_new_tokens: int | None = None
    row_ids: Sequence[str] = ()
    """(Q,) identity of a row's tokens, of a task that measures losses."""


def exp(value: float) -> float:
    """exp(value); infinite where that is beyond a float.

    >>> round(exp(0.693147), 3), exp(1e6)
    (2.0, inf)
    """
    return math.exp(value) if value < 709 else math.inf


def numbered(places: Sequence[str]) -> list[str]:
    """Names of rows that differ even where one place gives several.

    >>> numbered(["a:1", "a:1", "a:2"])
    ['a:1', 'a:1 (2)', 'a:2']
    """
    seen: Counter[str] = Counter()
    names = []
    for place in places:
        seen[place] += 1
        names.append(place if seen[place] == 1 else f"{place} ({seen[place]})")
    return names
