"""Counts what became of all rows, and says it as findings and as errors."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from qlora_cli.data.example import Place
from qlora_cli.data.pipeline import BatchResult
from qlora_cli.data.problems import RowProblems
from qlora_cli.data.rejection import Rejection, RejectionReason
from qlora_cli.data.report import Finding, Lengths, Verdict, measure_lengths
from qlora_cli.data.row_warnings import RowWarning
from qlora_cli.data.token_row import Unprinted
from qlora_cli.data.unread import Mentions
from qlora_cli.errors import Problem
from qlora_cli.recipe.data_schema import DataSection

CLEANING = frozenset(
    {
        RejectionReason.LEFT_OUT,
        RejectionReason.REQUIRED,
        RejectionReason.TOO_SHORT,
        RejectionReason.TOO_MANY_CHARS,
        RejectionReason.EXACT_DUPLICATE,
        RejectionReason.NEAR_DUPLICATE,
        RejectionReason.HELD_OUT_COPY,
    }
)
"""Causes of what the recipe asked for with `leave_out`, `data.clean` and `data.eval_fraction`."""


@dataclass
class DataStatistics:
    """Running counts over all sources of a recipe."""

    data: DataSection
    num_read: int = 0
    ends_a_turn: bool = False
    """Whether a token that ends a turn is trained in any row."""

    _causes: Counter[RejectionReason] = field(default_factory=Counter)
    _first: dict[RejectionReason, Rejection] = field(default_factory=dict)
    _refused: RowProblems = field(default_factory=RowProblems)
    _observed: Counter[RowWarning] = field(default_factory=Counter)
    _first_observed: dict[RowWarning, Place] = field(default_factory=dict)
    _unprinted: Counter[Unprinted] = field(default_factory=Counter)
    _first_unprinted: dict[Unprinted, Place] = field(default_factory=dict)
    _lengths: list[np.ndarray] = field(default_factory=list)
    _longest: tuple[int, str] = (0, "")
    _num_cut: int = 0
    _first_cut: Place | None = None
    _num_splittable: int = 0
    mentions: Mentions = field(default_factory=Mentions)
    """Parts of the kept rows without effect."""

    def add(self, outcome: BatchResult) -> None:
        """Count a batch."""
        self.num_read += outcome.num_read
        self.ends_a_turn |= outcome.ends_a_turn
        for rejection in outcome.rejections:
            self.reject(rejection)
        for observation, count in outcome.observed.items():
            self._observed[observation] += count
            self._first_observed.setdefault(observation, outcome.first_observed[observation])
        self.mentions.merge(outcome.mentions)
        for unprinted, count in outcome.unprinted.items():
            self._unprinted[unprinted] += count
            self._first_unprinted.setdefault(unprinted, outcome.first_unprinted[unprinted])
        self._num_cut += len(outcome.cut)
        self._num_splittable += outcome.num_splittable
        if outcome.cut and self._first_cut is None:
            self._first_cut = outcome.cut[0]
        if outcome.longest is not None:
            self._lengths.append(outcome.lengths)
            self._longest = max(self._longest, (int(outcome.lengths.max()), str(outcome.longest)))

    def reject(self, rejection: Rejection) -> None:
        """Count a row that is not trained on."""
        self._causes[rejection.cause] += 1
        self._first.setdefault(rejection.cause, rejection)
        if self.verdict(rejection.cause) == "refused" and rejection.cause != RejectionReason.TOO_LONG:
            self._refused.add(rejection.text, rejection.place, rejection.hint)

    def verdict(self, cause: RejectionReason) -> Verdict:
        """Consequence of a row of this cause for training."""
        if cause in CLEANING or (cause == RejectionReason.TOO_LONG and self.data.truncation not in ("refuse", "split")):
            return "left out"
        return "refused"

    @property
    def num_left_out(self) -> int:
        """Rows that the recipe asked to take out."""
        return sum(count for cause, count in self._causes.items() if self.verdict(cause) == "left out")

    def causes_in_words(self) -> str:
        """Why rows are not trained on, e.g. "of 5 rows read, 3 longer than max_length"."""
        counts = (f"{self._causes[cause]:,} {cause.value}" for cause in RejectionReason if self._causes[cause])
        return f"of {self.num_read:,} rows read, {', '.join(counts)}"

    @property
    def lengths(self) -> Lengths | None:
        """Of the rows that were rendered."""
        return measure_lengths(np.concatenate(self._lengths), self._longest[1]) if self._lengths else None

    def problems(self) -> list[Problem]:
        """Problems that stop training: the first rows that are refused, and the lengths that do not fit."""
        problems = self._refused.problems()
        if RejectionReason.TOO_LONG in self._first and self.verdict(RejectionReason.TOO_LONG) == "refused":
            problems.append(self._too_long())
        return problems

    def findings(self) -> list[Finding]:
        """Everything that was seen, the gravest first."""
        findings = []
        for cause in RejectionReason:
            if cause not in self._first:
                continue
            rejection = self._first[cause]
            verdict = self.verdict(cause)
            problem = rejection.problem
            if cause == RejectionReason.TOO_LONG:
                problem = self._too_long() if verdict == "refused" else replace(problem, hint=self._split_hint())
            count = self._causes[cause]
            findings.append(Finding(cause.value, verdict, count, str(rejection.place), problem.text, problem.hint))
        findings.sort(key=lambda finding: finding.verdict != "refused")
        if self._first_cut is not None:
            findings.append(
                Finding(
                    RejectionReason.TOO_LONG.value, "cut", self._num_cut, str(self._first_cut), self._cut_in_words()
                )
            )
        for observation in RowWarning:
            if observation in self._first_observed:
                place = str(self._first_observed[observation])
                findings.append(Finding(observation.value, "noted", self._observed[observation], place, ""))
        for unprinted, count in self._unprinted.items():
            place = str(self._first_unprinted[unprinted])
            findings.append(
                Finding(RejectionReason.UNPRINTED.value, "noted", count, place, unprinted.what, unprinted.hint)
            )
        return findings + self.mentions.findings()

    def _cut_in_words(self) -> str:
        limit = f"{self.data.max_length:,} tokens"
        if self.data.truncation == "split":
            num_pieces = sum(
                int((-(-lengths[lengths > self.data.max_length] // self.data.max_length)).sum())
                for lengths in self._lengths
            )
            return f"split into {num_pieces:,} pieces of at most {limit}, nothing lost"
        how = {"cut_prompt": "the middle of a prompt", "cut_middle_turns": "exchanges from the middle"}
        return f"{how[self.data.truncation]} taken out to fit {limit}"

    def _split_hint(self) -> str:
        """Hint to split long running text; empty where there was none."""
        if not self._num_splittable:
            return ""
        return f"`data.truncation: split` cuts {self._num_splittable:,} of them into pieces, with nothing lost"

    def _too_long(self) -> Problem:
        lengths = self.lengths
        assert lengths is not None  # a row was too long, so rows were measured
        num_rows = sum(map(len, self._lengths))
        num_long = self._causes[RejectionReason.TOO_LONG]
        return Problem(
            f"{num_long:,} of {num_rows:,} rows are longer than max_length "
            f"{self.data.max_length:,} (longest {lengths.longest:,} tokens, 99% have at most {lengths.p99:,}, "
            f"95% at most {lengths.p95:,}); this is the first",
            str(self._first[RejectionReason.TOO_LONG].place),
            self._way_on(lengths.longest, num_long),
        )

    def _way_on(self, longest: int, num_long: int) -> str:
        """Remedies for rows that are too long: running text is split, a prompt is cut."""
        keep = f"set `data.max_length: {longest}` to keep all"
        drop = "`data.truncation: drop` to leave the long rows out"
        if self.data.truncation == "split":
            return f"only running text is split; {keep}, or {drop}"
        if self._num_splittable == num_long:
            return f"set `data.truncation: split` to cut the text into pieces, with nothing lost; or {keep}; or {drop}"
        cut = "`cut_prompt` / `cut_middle_turns` to shorten what comes before the last answer"
        return f"{keep}, {drop}, or {cut}"
