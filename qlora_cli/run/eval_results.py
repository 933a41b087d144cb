"""Results of an evaluation as `eval/results.json` holds them: what `qlora eval` writes and pages read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from qlora_cli.errors import IdentityError
from qlora_cli.run.adapter_health import MEASURE_AGAIN
from qlora_cli.run.files import read_json_object
from qlora_cli.run.inventory import MARKER, is_plain_file, listed_files

FORMAT = 2
RESULTS_NAME = "results.json"
HELD_OUT = "held-out"
"""Task of the run's eval rows, or of `--data`."""

GENERAL_TEXT = "general text"
"""Task that shows what was forgotten."""

LOSSES_NAME = "losses.jsonl"
"""Loss of each model on each row. A row is known by its tokens: two runs are compared on those that they share."""

PARTIAL_NAME = "partial.jsonl"
"""Results of an evaluation that is not finished, one a line; the first line marks the file as this project's."""

PARTIAL_HEAD = json.dumps(MARKER) + "\n"
JUDGEMENTS_NAME = "judgements.jsonl"
JUDGEMENTS_HEAD = json.dumps({"written_by": "qlora", "holds": "judgements"}) + "\n"
GROWING = {PARTIAL_NAME: PARTIAL_HEAD, JUDGEMENTS_NAME: JUDGEMENTS_HEAD}
"""Files of which only the end changes -> their first line, by which this project knows its own."""


@dataclass(frozen=True)
class MeasuredModel:
    """One of the models that were compared."""

    name: str
    path: str
    role: str
    """`base`, `tuned`, or `other` for one that was named as what to compare with."""

    computed_in: str
    """Precision and kind of device, as `float32 on cpu`."""


@dataclass(frozen=True)
class Figure:
    """A measure of one model with its 95% interval."""

    value: float | None
    """None where it is beyond a float."""

    low: float | None = None
    high: float | None = None
    count: int = 0
    """Tokens, questions or rows that it is a mean over."""


@dataclass(frozen=True)
class Measure:
    """One measure of a task, for each model."""

    task: str
    measure: str
    higher_is_better: bool
    unit: str
    """`nats`, `bits`, `share` (0 to 1), `score` (0 to 100) or `ratio`."""

    over: str
    """`tokens`, `bytes`, `questions` or `rows`."""

    source: str | None = None
    """File of the rows; None for all of them."""

    rule: str | None = None
    """How it is scored."""

    values: Mapping[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredVerdict:
    """Comparison of one measure of two models over the same questions."""

    task: str
    measure: str
    model: str
    against: str
    difference: float
    low: float
    high: float
    p_value: float
    p_adjusted: float
    outcome: str
    """`better`, `worse` or `no evidence`."""

    num_questions: int
    smallest_detectable: float | None
    rows_for_half: int | None
    sentence: str


@dataclass(frozen=True)
class TaskSummary:
    """Questions of a task, and answers that are counted apart; both by model."""

    task: str
    questions: int
    cut: Mapping[str, int] = field(default_factory=dict)
    """Answers that ran into their length, or whose reasoning did."""

    empty: Mapping[str, int] = field(default_factory=dict)
    metrics: Sequence[str] = ()
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class EvalResults:
    """All that an evaluation found."""

    models: list[MeasuredModel]
    measures: list[Measure]
    verdicts: list[StoredVerdict]
    tasks: list[TaskSummary]

    def as_dict(self) -> dict[str, Any]:
        """As JSON; what is beyond a float becomes null."""
        found: dict[str, Any] = _without_infinities({"format": FORMAT, **asdict(self)})
        return found


def read_results(folder: Path) -> EvalResults | None:
    """The results in the folder of an evaluation; None where there are none.

    Raises:
        IdentityError: if they are damaged, or of an older form.
    """
    path = folder / RESULTS_NAME
    if not path.exists():
        return None
    stored = read_json_object(path, hint=MEASURE_AGAIN)
    if stored.get("format") != FORMAT:
        raise IdentityError(f"is of format {stored.get('format')!r}, not {FORMAT}", place=str(path), hint=MEASURE_AGAIN)
    try:
        measures = [
            _made(Measure, {**entry, "values": {name: _made(Figure, one) for name, one in entry["values"].items()}})
            for entry in stored["measures"]
        ]
        return EvalResults(
            [_made(MeasuredModel, entry) for entry in stored["models"]],
            measures,
            [_made(StoredVerdict, entry) for entry in stored["verdicts"]],
            [_made(TaskSummary, entry) for entry in stored["tasks"]],
        )
    except (KeyError, TypeError, AttributeError) as fault:
        raise IdentityError(f"is damaged: {fault}", place=str(path), hint=MEASURE_AGAIN) from fault


def answers_name(task: str) -> str:
    """File with the answers of a task."""
    return f"answers-{task}.jsonl"


def answered_tasks(folder: Path) -> dict[str, Path]:
    """Each task whose answers are there, and their file."""
    before, _, after = answers_name("*").partition("*")
    files = sorted(folder.glob(answers_name("*")))
    return {path.name.removeprefix(before).removesuffix(after): path for path in files}


def eval_files(folder: Path) -> set[str]:
    """The files of an evaluation's folder that this project wrote, those of one that is not finished too."""
    return listed_files(folder) | {name for name in GROWING if is_own_growing(folder, name)}


def is_own_growing(folder: Path, name: str) -> bool:
    """Whether a file of `GROWING` is there, written by this project."""
    if not is_plain_file(folder, name):
        return False
    with (folder / name).open("rb") as file:
        return file.readline(256) == GROWING[name].encode()


Stored = TypeVar("Stored")


def _made(kind: type[Stored], entry: Mapping[str, Any]) -> Stored:
    """An object of the stored keys that it knows; a newer version may have written more."""
    known = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    return kind(**{key: value for key, value in entry.items() if key in known})


def _without_infinities(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_infinities(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
