"""The page of a run that trains: written now and then, in a hundredth of the time, and never a reason to stop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qlora_cli import console
from qlora_cli.report.write import write_report
from qlora_cli.run.directory import RunDirectory

LEAST_SECONDS = 30.0
"""Between two pages, where no evaluation has come."""

MOST_SHARE = 0.01
"""Of the time of the training that may go into pages."""


def write_page(run: RunDirectory, *, is_held: bool) -> bool:
    """Write `report.html`; a fault is a note, since a run is worth more than its page.

    Args:
        run: its directory.
        is_held: whether the run goes on.

    Returns:
        Whether it was written.
    """
    try:
        write_report(run, is_held=is_held)
    except Exception as fault:  # noqa: BLE001 - whatever is wrong with a page must not end a run of hours
        console.note(f"{run.report_path} is not written: {type(fault).__name__}: {str(fault).splitlines()[0]}")
        return False
    return True


@contextmanager
def page_at_the_end(run: RunDirectory) -> Iterator[None]:
    """Write the page when the block is over, however it ends."""
    try:
        yield
    finally:
        write_page(run, is_held=False)


class ReportPageCallback(TrainerCallback):
    """Writes the page after an evaluation and from time to time, as long as it costs next to nothing.

    Args:
        run: the run that is trained; this process alone writes there.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._is_wanted = True
        self._started = self._last = 0.0
        self._spent = self._last_cost = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._started = time.monotonic()
        self._write()
        self._started, self._spent = time.monotonic(), 0.0  # before the first step, and with what is imported for it

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if time.monotonic() - self._last >= LEAST_SECONDS:
            self._write_if_cheap()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._write_if_cheap()

    def _write_if_cheap(self) -> None:
        """Write, if all pages together then still take less than their share of the time."""
        elapsed = time.monotonic() - self._started
        if self._is_wanted and self._spent + self._last_cost <= MOST_SHARE * elapsed:
            self._write()

    def _write(self) -> None:
        began = time.monotonic()
        self._is_wanted = write_page(self._run, is_held=True)
        self._last = time.monotonic()
        self._last_cost = self._last - began
        self._spent += self._last_cost
