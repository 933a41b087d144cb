"""Errors that the user can act on. Each says what is wrong, where, and what to type next."""

from __future__ import annotations

from dataclasses import dataclass, fields

from qlora_cli.secrets import redacted


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, what, and the next step; secrets in it are taken out when it is made."""

    text: str
    """The fault, with the value that was seen."""

    place: str = ""
    """`file:line`, a run directory, or a key; empty where there is no place."""

    hint: str = ""
    """Next step, to type or to change; empty where the text already says it."""

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, redacted(getattr(self, field.name)))

    def __str__(self) -> str:
        line = f"{self.place}: {self.text}" if self.place else self.text
        return f"error: {line}" + (f"\nhint: {self.hint}" if self.hint else "")


class QloraError(Exception):
    """A failure that the user can act on; printed without a traceback.

    Args:
        problem: what is wrong, with the value seen; or several `Problem`s, reported together.
        hint: what to type next (only with a single text).
        place: `file:line` of the fault (only with a single text).
    """

    exit_code = 2

    def __init__(self, problem: str | list[Problem], *, hint: str = "", place: str = "") -> None:
        self.problems = [Problem(problem, place, hint)] if isinstance(problem, str) else list(problem)
        if not self.problems:
            raise ValueError("a QloraError needs at least one problem")
        super().__init__("\n".join(map(str, self.problems)))


class RecipeError(QloraError):
    """The recipe cannot be used as it is. Exit code 2."""


class DataError(QloraError):
    """The data cannot be trained on or evaluated as it is. Exit code 2."""


class ArgumentError(QloraError):
    """A command-line argument does not fit. Exit code 2."""


class IdentityError(QloraError):
    """Two things that must be the same are not: wrong base, changed recipe on resume. Exit code 3."""

    exit_code = 3


class NumericError(QloraError):
    """Numbers went wrong: a loss that is not finite, a merge that is not the trained model. Exit code 4."""

    exit_code = 4


class ResourceError(QloraError):
    """Out of disk or memory, or libraries are installed that do not fit. Exit code 5."""

    exit_code = 5


class RunInUseError(QloraError):
    """Another process holds the run directory. Exit code 6."""

    exit_code = 6


class StoppedBySignal(QloraError):  # noqa: N818 - not a fault: the run did what the signal asked
    """A signal stopped the run after its checkpoint was saved. Exit code 128 + signal number."""

    def __init__(self, problem: str, *, signal_number: int, hint: str = "") -> None:
        super().__init__(problem, hint=hint)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
