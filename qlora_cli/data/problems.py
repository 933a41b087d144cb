"""Collects what is wrong with many rows, so that one run shows all of it."""

from __future__ import annotations

from qlora_cli.data.example import Place
from qlora_cli.errors import DataError, Problem

NUM_PROBLEMS_SHOWN = 20


class RowProblems:
    """The first problems of a pass over rows, and the count of the rest."""

    def __init__(self) -> None:
        self._shown: list[Problem] = []
        self._num_hidden = 0

    def add(self, text: str, place: Place | str, hint: str = "") -> None:
        """Note a problem; kept in full while fewer than `NUM_PROBLEMS_SHOWN` are."""
        if len(self._shown) < NUM_PROBLEMS_SHOWN:
            self._shown.append(Problem(text, str(place), hint))
        else:
            self._num_hidden += 1

    def add_error(self, error: DataError) -> None:
        """Note the problems of a row's error."""
        for problem in error.problems:
            self.add(problem.text, problem.place, problem.hint)

    def problems(self) -> list[Problem]:
        """All that was noted: a hint only where it differs from the one before, and a count of those not shown."""
        problems: list[Problem] = []
        hint_before = ""
        for problem in self._shown:
            hint = "" if problem.hint == hint_before else problem.hint
            hint_before = problem.hint
            problems.append(Problem(problem.text, problem.place, hint))
        if self._num_hidden:
            problems.append(Problem(f"... and {self._num_hidden:,} more problems like these"))
        return problems

    def raise_if_any(self) -> None:
        """Raise all that was noted.

        Raises:
            DataError: with `problems`.
        """
        if self._shown:
            raise DataError(self.problems())
