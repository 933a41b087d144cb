"""torchrun in a child of a fork server: all of it is the real one, but that its workers are forked and not executed.

An interpreter that imports the libraries takes seconds, and a launcher with two workers has three of them.
"""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

from tests.reliability.harness import rank_runs

LAUNCHER_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Signals that a launcher handles and a program that it executes does not, beside Ctrl-C."""

MOST_DESCRIPTORS = 4096


class ForkedWorker(subprocess.Popen):
    """A process of `python -m qlora_cli` as `Popen` makes it, without the start of the interpreter."""

    def _execute_child(self, args: Any, *options: Any) -> None:
        environment = options[5]
        self.pid = os.fork()
        if self.pid == 0:
            _work([*args], environment)
        self._child_created = True


def _work(command: list[str], environment: dict[str, str]) -> None:
    """In the worker; never returns."""
    exit_code = 1
    try:
        os.setsid()
        os.closerange(3, MOST_DESCRIPTORS)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in LAUNCHER_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(environment)
        exit_code = rank_runs.qlora(0, 1, 0, command[command.index("qlora_cli") + 1 :])
    finally:
        os._exit(exit_code)


def torchrun(arguments: list[str]) -> int:
    """In a child of the fork server: `torchrun` with its arguments."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    subprocess_handler.Popen = ForkedWorker
    run.main(arguments)
    return 0
