"""Report on the data of a recipe: rows read, rows trained, rows taken out and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

Verdict = Literal["refused", "left out", "cut", "noted"]
"""refused: training would not start. left out, cut: the recipe asked for it. noted: worth a look."""

NUM_HISTOGRAM_BINS = 16


@dataclass(frozen=True)
class Finding:
    """Rows that something was found about."""

    what: str
    """A cause or an observation, e.g. "longer than max_length"."""

    verdict: Verdict
    num_rows: int
    first: str
    """Place of the first such row; empty where it concerns no single row."""

    text: str
    """The finding about that row."""

    hint: str = ""


@dataclass(frozen=True)
class SourceReport:
    """One source of the recipe."""

    path: str
    part: Literal["train", "eval"]
    num_read: int
    num_kept: int
    """Rows that can be trained on."""

    num_rows: int
    """Rows seen in one epoch: those kept and not held out, with repeats."""

    num_tokens: int
    """Tokens of these."""

    share_of_rows: float
    """Of the rows of its part."""

    share_of_tokens: float


@dataclass(frozen=True)
class Lengths:
    """Tokens a row, over all rows that were rendered, those too long for the recipe included."""

    p50: int
    p95: int
    p99: int
    longest: int
    longest_place: str
    histogram: tuple[tuple[int, int, int], ...]
    """First length, the one after the last, and the rows between."""


@dataclass(frozen=True)
class DataReport:
    """All that `qlora data check` shows."""

    sources: tuple[SourceReport, ...]
    findings: tuple[Finding, ...]
    lengths: Lengths | None
    """None where no row could be rendered."""

    num_read: int
    num_train: int
    """Training rows of one epoch, with repeats."""

    num_eval: int
    num_tokens: int
    """Tokens of the training rows."""

    num_trained_tokens: int
    max_length: int
    truncation: str
    packing: bool
    num_packed_rows: int
    """Rows of a training epoch; those of `num_train` where nothing is packed."""

    fill: float
    """Share of the packed rows' places that hold a token."""

    seconds: float

    @property
    def is_trainable(self) -> bool:
        """Whether training would start."""
        return all(finding.verdict != "refused" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON holds it."""
        return {"is_trainable": self.is_trainable, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataReport:
        """The report that `as_dict` gave, after its way through JSON."""
        given = {key: value for key, value in values.items() if key != "is_trainable"}
        lengths = given["lengths"]
        if lengths is not None:
            lengths = Lengths(**{**lengths, "histogram": tuple(map(tuple, lengths["histogram"]))})
        sources = tuple(SourceReport(**source) for source in given["sources"])
        findings = tuple(Finding(**finding) for finding in given["findings"])
        return cls(**{**given, "sources": sources, "findings": findings, "lengths": lengths})


def measure_lengths(lengths: Sequence[int] | np.ndarray, longest_place: str) -> Lengths | None:
    """Percentiles (nearest rank) and a histogram of equal bins.

    >>> measure_lengths([3, 1, 2, 10], "a.jsonl:4").histogram[:2]
    ((1, 2, 1), (2, 3, 1))
    """
    values = np.sort(np.asarray(lengths, dtype=np.int64))
    if not len(values):
        return None
    p50, p95, p99 = (int(values[int(np.ceil(share * len(values))) - 1]) for share in (0.50, 0.95, 0.99))
    shortest, longest = int(values[0]), int(values[-1])
    width = max(1, -(-(longest + 1 - shortest) // NUM_HISTOGRAM_BINS))
    counts = np.bincount((values - shortest) // width)
    histogram = tuple(
        (shortest + at * width, shortest + (at + 1) * width, int(count)) for at, count in enumerate(counts)
    )
    return Lengths(p50, p95, p99, longest, longest_place, histogram)
