"""The form of a metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Score = Callable[[str, str], float]
"""(answer, reference) -> score of one answer."""

Fault = Callable[[str], str | None]
"""Reference -> why nothing can be compared with it; None where something can."""


def any_text(reference: str) -> str | None:
    """Every reference will do."""
    return None


@dataclass(frozen=True)
class Metric:
    """How answers are scored."""

    score: Score
    rule: str
    """In words."""

    fault: Fault = any_text
    unit: Literal["share", "score"] = "share"
    """Scores from 0 to 1, or from 0 to 100."""

    corpus: Callable[[Sequence[str], Sequence[str]], float] | None = None
    """(answers, references) -> figure of all answers together, where that is not the mean of their scores."""

    reads_normalized: bool = True
    """Whether what a task ignores is taken out of answer and reference first."""
