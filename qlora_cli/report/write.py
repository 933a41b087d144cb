"""Writes the report of a run into a file, once or whenever the run has grown."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qlora_cli import console
from qlora_cli.errors import ArgumentError
from qlora_cli.report.advice.advice import Advice
from qlora_cli.report.advice.all_rules import advice_for
from qlora_cli.report.page import page
from qlora_cli.report.record import RunRecord, read_record
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.eval_results import RESULTS_NAME
from qlora_cli.run.files import refuse_foreign_page, write_text

WATCH_SECONDS = 2.0
"""Between two looks at a run that is watched."""

REFRESH_SECONDS = 5


@dataclass(frozen=True)
class Report:
    """A report that was written."""

    path: Path
    num_bytes: int
    status: str
    """Of the run."""

    num_steps: int
    """Optimizer steps that it shows."""

    advice: tuple[Advice, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**asdict(self), "path": str(self.path)}


def write_report(
    run: RunDirectory, out: Path | None = None, *, refreshes: bool = False, is_held: bool | None = None
) -> Report:
    """Read the run and write its page.

    Args:
        run: its directory.
        out: the page; `report.html` in the run's directory when None.
        refreshes: whether a browser loads the page again after a few seconds.
        is_held: whether a process trains it now; None to ask the lock.

    Raises:
        ArgumentError: if there is no such run, the name is not that of a page, or another file has it.
    """
    path = run.report_path if out is None else out
    check_page(path)
    record = read_record(run, is_held=is_held)
    return _write(record, path, refreshes=refreshes)


def check_page(path: Path) -> None:
    """Refuse a name that is not that of a page, and a file that is not ours.

    Raises:
        ArgumentError: saying which it is.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise ArgumentError(f"'{path}' does not end in .html", hint=f"try `--out {path.with_suffix('.html')}`")
    refuse_foreign_page(path)


def _write(record: RunRecord, path: Path, *, refreshes: bool) -> Report:
    found = tuple(advice_for(record))
    html = page(record, found, refresh_seconds=REFRESH_SECONDS if refreshes else None)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, html, is_content=True)
    return Report(path, len(html.encode()), record.status, record.num_steps, found)


def watch_report(run: RunDirectory, out: Path | None = None) -> Report:
    """Write the page again whenever the run has grown, until the run is over or Ctrl-C; the last page does not refresh.

    Args:
        run: its directory.
        out: as `write_report` takes it.

    Raises:
        ArgumentError: as `write_report`.
    """
    seen: object = None
    try:
        while True:
            state = _state(run)
            if state != seen:
                seen = state
                report = write_report(run, out, refreshes=True)
                console.note(f"{report.path}: step {report.num_steps:,}, {report.status}")
                if report.status not in ("training", "preparing"):
                    break
            time.sleep(WATCH_SECONDS)
    finally:
        report = write_report(run, out)
    return report


def _state(run: RunDirectory) -> tuple[tuple[int, int], ...]:
    """Sizes and times of the files that a report is made of."""
    paths = (run.metrics_path, run.manifest_path, run.eval_path / RESULTS_NAME)
    facts = [path.stat() if path.exists() else None for path in paths]
    return tuple((0, 0) if each is None else (each.st_size, each.st_mtime_ns) for each in facts)
