"""A run that another is to replace is there until that other is started, whatever stops it on the way."""

from __future__ import annotations

import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_cli.run.claim import claimed
from qlora_cli.run.directory import RunDirectory
from tests.reliability.harness.forkserver import ForkServer
from tests.reliability.harness.replaced_runs import EARLIER, NEW, OTHERS, content_of, lay
from tests.reliability.harness.strace import Fault, need_strace, run_with_fault, trace_calls

REPLACE = "tests.reliability.harness.replaced_runs:replace"
BAD_DATA, REFUSED = 2, 5
ENDS = {True: 0, False: BAD_DATA}
"""Whether the new run can start -> the exit code where nothing disturbs it."""


class Field:
    """Runs that are ready to be replaced, and a server whose children do it."""

    def __init__(self, server: ForkServer, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._calls: dict[bool, list[tuple[str, int]]] = {}

    def run(self) -> RunDirectory:
        run = RunDirectory(self._folder / "run")
        shutil.rmtree(run.path, ignore_errors=True)
        lay(run, EARLIER)
        for name, text in OTHERS.items():
            (run.path / name).write_text(text)
        return run

    def faults(self, effect: str, *, can_start: bool) -> list[Fault]:
        """One for each call by which an undisturbed replacement changes the run."""
        if can_start not in self._calls:
            self._calls[can_start] = self._trace(can_start)
        return [Fault(name, number, effect) for name, number in self._calls[can_start]]

    def _trace(self, can_start: bool) -> list[tuple[str, int]]:
        """Those calls: the name of each, and the how-maniest of that name it is."""
        run, log = self.run(), self._folder / "log.txt"
        arguments = {"run": str(run.path), "can_start": can_start}
        calls, counts = [], Counter[str]()
        for call in trace_calls(self._server, REPLACE, arguments, log=log, exit_code=ENDS[can_start]):
            counts[call.name] += 1
            if call.path.startswith(str(run.path)):
                calls.append((call.name, counts[call.name]))
        return calls

    def replace(self, run: RunDirectory, fault: Fault, *, can_start: bool) -> int:
        arguments = {"run": str(run.path), "can_start": can_start}
        return run_with_fault(self._server, REPLACE, arguments, fault, log=self._folder / "log.txt")


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    need_strace()
    with ForkServer("tests.reliability.harness.replaced_runs", is_light=True) as server:
        yield Field(server, tmp_path_factory.mktemp("replaced"))


def found_later(run: RunDirectory) -> dict[str, str]:
    """What the next process that writes here finds."""
    with claimed(run):
        return content_of(run)


@pytest.mark.parametrize("can_start", [True, False], ids=["started", "not started"])
def test_a_kill_at_any_call_leaves_the_earlier_run_or_the_new_one_whole(field, can_start):
    faults = field.faults("signal=SIGKILL", can_start=can_start)
    assert len(faults) > 20
    seen = []
    for fault in faults:
        run = field.run()
        assert field.replace(run, fault, can_start=can_start) in (-signal.SIGKILL, ENDS[can_start]), fault
        found = found_later(run)
        assert found in ([EARLIER | OTHERS, NEW | OTHERS] if can_start else [EARLIER | OTHERS]), (fault, found)
        seen.append(found)
    assert EARLIER | OTHERS in seen
    assert (NEW | OTHERS in seen) is can_start


@pytest.mark.parametrize("can_start", [True, False], ids=["started", "not started"])
@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "EACCES", "EINTR"])
def test_a_call_that_fails_costs_neither(field, error, can_start):
    for fault in field.faults(f"error={error}", can_start=can_start):
        run = field.run()
        exit_code = field.replace(run, fault, can_start=can_start)
        assert exit_code in (REFUSED, ENDS[can_start]), fault
        found = found_later(run)
        assert found in ([EARLIER | OTHERS, NEW | OTHERS] if can_start else [EARLIER | OTHERS]), (
            fault,
            exit_code,
            found,
        )
        assert found == NEW | OTHERS or exit_code != 0, fault
