"""Several runs beside each other: how far each came, what differs in what they were, and what their answers show."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qlora_cli.progress import in_time
from qlora_cli.report.curve import is_number
from qlora_cli.report.measures_part import objects
from qlora_cli.report.record import RunRecord, flattened
from qlora_cli.verdict.paired import Paired, Verdict, judge_pairs

NOT_RECORDED = "not recorded"
NOT_COMPARED = (
    *("name", "started_in", "started_at", "written_by"),
    *("status", "memory", "seconds", "num_steps", "max_steps", "adapter_step", "early_stop"),
)
"""Keys that say which run it is, not what it was."""


@dataclass(frozen=True)
class RunLine:
    """A run in figures."""

    run: str
    status: str
    num_steps: int
    max_steps: int | None
    loss: float | None
    """The last of the smoothed training loss."""

    best_eval_loss: float | None
    best_step: int | None
    seconds: float | None

    def cells(self) -> tuple[str, ...]:
        """As a person reads it."""
        steps = f"{self.num_steps:,}" + ("" if self.max_steps is None else f"/{self.max_steps:,}")
        best = "" if self.best_eval_loss is None else f"{self.best_eval_loss:.4f}"
        at = "" if self.best_step is None else f"{self.best_step:,}"
        loss = "" if self.loss is None else f"{self.loss:.4f}"
        return (self.run, self.status, steps, loss, best, at, "" if self.seconds is None else in_time(self.seconds))


LOSS = "loss"

COLUMNS = ("run", "status", "steps", "loss", "best eval loss", "at step", "time")


@dataclass(frozen=True)
class Difference:
    """A key in which the runs are not the same."""

    section: str
    """recipe, data, base, versions, hardware or others of the manifest."""

    key: str
    values: tuple[str, ...]
    """Of each run, in their order."""

    def cells(self) -> tuple[str, ...]:
        """As a person reads it: a fingerprint by its beginning."""
        short = [f"{text[:11]}…" if self.key == "fingerprint" else text for text in self.values]
        return (f"{self.section} {self.key}", *short)


@dataclass(frozen=True)
class PairedVerdict:
    """What the answers of two runs to the same questions show, or their losses on the same rows."""

    task: str
    measure: str
    run: str
    against: str
    verdict: Verdict
    num_apart: int
    """Questions or rows that only one of the two has."""


@dataclass(frozen=True)
class _Scored:
    """What one model got for a question, or the loss summed over a row."""

    value: float
    weight: float = 1.0
    """Tokens of the row."""


@dataclass(frozen=True)
class Comparison:
    """All that `qlora compare` shows."""

    runs: tuple[RunLine, ...]
    differences: tuple[Difference, ...]
    verdicts: tuple[PairedVerdict, ...]
    page: Path | None = None
    """The page that was written."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**asdict(self), "page": None if self.page is None else str(self.page)}


def compare_runs(records: Sequence[RunRecord]) -> Comparison:
    """The runs in their order; each later one is compared with the first."""
    names = unique_names(records)
    first, *others = records
    verdicts = []
    for name, other in zip(names[1:], others, strict=True):
        verdicts += list(_verdicts(first, other, names[0], name))
    lines = tuple(_line(name, record) for name, record in zip(names, records, strict=True))
    return Comparison(lines, tuple(differences(records)), tuple(verdicts))


def unique_names(records: Sequence[RunRecord]) -> list[str]:
    """The names of the directories; whole paths where two have the same."""
    names = [record.name for record in records]
    return names if len(set(names)) == len(names) else [str(record.path) for record in records]


def _line(name: str, record: RunRecord) -> RunLine:
    losses, evals = record.curve("loss").smoothed(), record.curve("eval_loss")
    step, best = evals.lowest if len(evals) else (None, None)
    seconds = record.manifest.get("seconds")
    return RunLine(
        run=name,
        status=record.status,
        num_steps=record.num_steps,
        max_steps=record.max_steps,
        loss=losses.last if len(losses) else None,
        best_eval_loss=best,
        best_step=step,
        seconds=float(seconds) if is_number(seconds) else None,
    )


def differences(records: Sequence[RunRecord]) -> Iterator[Difference]:
    """Key by key, of recipe and manifest; a key that one run does not have differs."""
    yield from _different("recipe", [dict(flattened(record.recipe, with_lists=True)) for record in records])
    manifests = [
        {key: value for key, value in record.manifest.items() if key not in NOT_COMPARED} for record in records
    ]
    sections = dict.fromkeys(key for manifest in manifests for key in manifest)
    for section in sections:
        values = [manifest.get(section) for manifest in manifests]
        if any(isinstance(value, dict) for value in values):
            yield from _different(section, [dict(flattened(v)) if isinstance(v, dict) else {} for v in values])
        else:
            yield from _different(
                "run", [{section: manifest[section]} if section in manifest else {} for manifest in manifests]
            )


def _different(section: str, sides: Sequence[Mapping[str, Any]]) -> Iterator[Difference]:
    for key in dict.fromkeys(key for side in sides for key in side):
        if key in NOT_COMPARED:
            continue
        values = tuple(_told(side[key]) if key in side else NOT_RECORDED for side in sides)
        if len(set(values)) > 1:
            yield Difference(section, key, values)


def _told(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _verdicts(first: RunRecord, other: RunRecord, against: str, name: str) -> Iterator[PairedVerdict]:
    """One for each task and measure of which both runs have the same questions, or rows."""
    before, after = _measured(first), _measured(other)
    pairs: dict[str, Paired] = {}
    keys: dict[str, tuple[str, str]] = {}
    for task, measure in sorted(before.keys() & after.keys()):
        one, two = before[task, measure], after[task, measure]
        shared = [question for question in one if question in two]
        if shared:
            label = f"{task}, {measure}"
            keys[label] = task, measure
            pairs[label] = Paired(
                [one[question].value for question in shared],
                [two[question].value for question in shared],
                [two[question].weight for question in shared] if measure == LOSS else None,
                higher_is_better=measure != LOSS,
            )
    for label, verdict in sorted(judge_pairs(pairs).items()) if pairs else ():
        key = keys[label]
        num_apart = len(before[key].keys() ^ after[key].keys())
        yield PairedVerdict(*key, name, against, verdict, num_apart)


def _measured(record: RunRecord) -> dict[tuple[str, str], dict[str, _Scored]]:
    """Task and measure -> question -> what the tuned model got; a question is its prompt and its reference."""
    found: dict[tuple[str, str], dict[str, _Scored]] = defaultdict(dict)
    for task, rows in record.answers.items():
        for row in rows:
            scores, tuned = row.get("scores"), tuned_name(record, row)
            question = json.dumps([row.get("prompt"), row.get("reference")], sort_keys=True)
            for measure, values in scores.items() if isinstance(scores, dict) else ():
                if isinstance(values, dict) and is_number(values.get(tuned)):
                    found[task, measure][question] = _Scored(float(values[tuned]))
    tuned_models = _tuned_models(record)
    for row in record.losses:
        nats, tokens = row.get("nats"), row.get("tokens")
        if row.get("model") in tuned_models[:1] and is_number(nats) and is_number(tokens):
            found[str(row.get("task")), LOSS][str(row.get("row"))] = _Scored(float(nats), float(tokens))
    return found


def _tuned_models(record: RunRecord) -> list[Any]:
    return [model.get("name") for model in objects(record.results.get("models")) if model.get("role") == "tuned"]


def tuned_name(record: RunRecord, row: Mapping[str, Any]) -> str | None:
    """The model that the run made, among those that answered; None where there is none."""
    answers = row.get("answers")
    names = list(answers) if isinstance(answers, dict) else []
    return next(
        (name for name in names if name in _tuned_models(record)),
        next((name for name in names if name != "base"), None),
    )
