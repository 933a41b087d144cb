"""The table of runs: what each is, how far it got, what it reached."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from qlora_cli.choices import RunOrder
from qlora_cli.errors import IdentityError
from qlora_cli.progress import in_time
from qlora_cli.run.directory import RUNS_FOLDER, RunDirectory, list_runs
from qlora_cli.run.holder import holder_of
from qlora_cli.run.manifest import read_manifest
from qlora_cli.run.metrics import read_metrics

Result = TypeVar("Result")


@dataclass(frozen=True)
class RunOverview:
    """One line of `qlora runs`."""

    run: str
    status: str
    """training, preparing, died, stopped, finished or not started."""

    base_model: str
    num_steps: int
    loss: float | None
    eval_loss: float | None
    started_at: str
    best_eval_loss: float | None = None
    best_step: int | None = None
    """The step of it, the first of several."""

    seconds: float | None = None
    """Of all sessions; None where none has ended yet."""

    max_steps: int | None = None
    """None where it is not known yet."""

    process: str | None = None
    """Id of the process that trains it now."""

    def cells(self) -> tuple[str, ...]:
        """The line's cells as a person reads them, for a terminal of 80 columns; the base is in the JSON."""
        losses = ["" if value is None else f"{value:.4f}" for value in (self.loss, self.best_eval_loss)]
        status = self.status if self.process is None else f"{self.status}, process {self.process}"
        steps = str(self.num_steps) if self.max_steps is None else f"{self.num_steps}/{self.max_steps}"
        time = "" if self.seconds is None else in_time(self.seconds)
        return (self.run, status, steps, *losses, time, self.started_at[5:16].replace("T", " "))

    def as_dict(self) -> dict[str, Any]:
        """The line as JSON holds it."""
        return asdict(self)


COLUMNS = ("run", "status", "steps", "loss", "best eval", "time", "started")

ORDERS: dict[RunOrder, Callable[[RunOverview], Any]] = {
    "latest": lambda row: 0,
    "name": lambda row: row.run,
    "eval": lambda row: _or_last(row.best_eval_loss),
    "loss": lambda row: _or_last(row.loss),
    "steps": lambda row: -row.num_steps,
    "time": lambda row: _or_last(row.seconds),
}
"""Order -> key by which it sorts; runs that are equal in it stay in the order of their last change."""


def overview(folder: Path = RUNS_FOLDER, *, order: RunOrder = "latest") -> list[RunOverview]:
    """One line for each run below `folder`, the latest first, or in another order; what has no figure comes last."""
    return sorted((_describe(run) for run in list_runs(folder)), key=ORDERS[order])


def _or_last(value: float | None) -> float:
    return math.inf if value is None else value


def _describe(run: RunDirectory) -> RunOverview:
    metrics: list[dict[str, Any]] = _or_nothing(lambda: read_metrics(run.metrics_path), [])
    manifest: dict[str, Any] = _or_nothing(
        lambda: read_manifest(run), {}
    )  # none where the run stopped before it was written
    base = manifest.get("base")
    process = holder_of(run)
    max_steps = manifest.get("max_steps")
    best, step = _lowest(metrics, "eval_loss")
    return RunOverview(
        run=str(run.path),
        status=status_of(_text(manifest.get("status")), is_held=process is not None),
        base_model=_text(base.get("base_model")) if isinstance(base, dict) else "",
        num_steps=metrics[-1]["step"] if metrics else 0,
        loss=_last(metrics, "loss"),
        eval_loss=_last(metrics, "eval_loss"),
        started_at=_text(manifest.get("started_at")),
        best_eval_loss=best,
        best_step=step,
        seconds=_number(manifest.get("seconds")),
        max_steps=max_steps if isinstance(max_steps, int) else None,
        process=process,
    )


def status_of(recorded: str, *, is_held: bool) -> str:
    """Status from the manifest, checked against the lock: a process that was killed could not write that it ended.

    >>> status_of("started", is_held=True), status_of("started", is_held=False), status_of("finished", is_held=True)
    ('training', 'died', 'preparing')
    """
    if is_held:
        return "training" if recorded == "started" else "preparing"
    return "died" if recorded == "started" else recorded or "not started"


def _or_nothing(read: Callable[[], Result], nothing: Result) -> Result:
    """The value that is read; a damaged file of one run must not hide the others."""
    try:
        return read()
    except IdentityError:
        return nothing


def _last(metrics: list[dict[str, Any]], key: str) -> float | None:
    values = [line[key] for line in metrics if key in line]
    return values[-1] if values and isinstance(values[-1], int | float) else None


def _lowest(metrics: list[dict[str, Any]], key: str) -> tuple[float | None, int | None]:
    """The lowest value and its step."""
    found = [(value, line["step"]) for line in metrics if (value := _number(line.get(key))) is not None]
    return min(found, default=(None, None))


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def what_is_there(name: str) -> list[str]:
    """Notes on the run directory that a recipe of that name would be trained into; nothing where it is free."""
    run = RunDirectory(RUNS_FOLDER / name)
    if run.is_finished:
        return [f"{run.path} holds a finished run: train into another --run-dir, or replace it with --overwrite"]
    if run.is_started:
        return [f"{run.path} holds an unfinished run: `{run.resume_command}` continues it"]
    return []
