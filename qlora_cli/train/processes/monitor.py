"""Processes of one run monitor each other: when one ends by an error, all end, with one message and one exit code.

Each process has a connection to rank 0, which passes messages on. A connection that closes without a message shows
immediately that a process was killed, whatever the main thread is doing; nothing is polled and nothing times out. The
first process that fails prints the error; the others exit silently with its code.

Nothing heavy is imported here, so that the processes monitor each other before they import torch.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from qlora_cli import console
from qlora_cli.errors import QloraError, ResourceError
from qlora_cli.interruption import Interruption
from qlora_cli.run.disk_errors import disk_error
from qlora_cli.train.processes.launch import Launch
from qlora_cli.train.processes.rendezvous import Peer, rendezvous

Value = TypeVar("Value")

GRACE_SECONDS = 10.0
"""Time that a process may take to exit cleanly when another has failed; a stuck one is ended after that."""

ANSWER_SECONDS = 5.0
CRASHED = 1
"""Exit code of an error that is not a `QloraError`."""


@dataclass(frozen=True)
class Failure:
    """End of the run for all processes."""

    exit_code: int
    reporting_rank: int
    """The process that prints the error."""

    dead_rank: int | None
    """The process that was killed."""


class ProcessMonitor:
    """This process's connections to the others of its launch; without others it does nothing."""

    def __init__(self, launch: Launch, peers: list[Peer]) -> None:
        self.launch = launch
        self._peers = {peer.rank: peer for peer in peers}
        self._changed = threading.Condition()
        self._values: deque[Any] = deque()
        self._failure: Failure | None = None
        self._done: set[int] = set()
        self._has_left = False
        for peer in peers:
            threading.Thread(target=self._listen, args=(peer,), name=f"watch-{peer.rank}", daemon=True).start()

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes the run and shows it."""
        return self.launch.rank == 0

    def broadcast_object(self, make: Callable[[], Value]) -> Value:
        """The value that `make` returns in rank 0, in every process; the others wait for it as long as it takes.

        Args:
            make: called in rank 0 alone; returns what JSON holds.
        """
        if self.is_main_process:
            value = make()
            self._tell({"value": value})
            return value
        with self._changed:
            self._changed.wait_for(lambda: self._values or self._failure)
            self._raise_if_failed()
            waited_for: Value = self._values.popleft()
            return waited_for

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """The block runs in rank 0, and in the others after it."""
        if not self.is_main_process:
            self.broadcast_object(lambda: None)
        yield
        if self.is_main_process:
            self.broadcast_object(lambda: None)

    def raise_if_failed(self) -> None:
        """To be called when talking to another process has failed; returns if none of them has ended.

        Raises:
            ResourceError: if another process was killed and this one reports it.
            SystemExit: if another process reports the failure.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._failure, ANSWER_SECONDS if self._peers else 0)
            self._raise_if_failed()

    def reports_failure(self, exit_code: int) -> bool:
        """Whether this process, which ends by an error, is the one that prints it; the others are made to exit."""
        with self._changed:
            self._has_left = True
            if self.is_main_process:
                self._record_failure(Failure(exit_code, 0, None))
            elif self._failure is None:
                self._tell({"failed": exit_code})
                self._changed.wait_for(lambda: self._failure, ANSWER_SECONDS)
            return self._failure is None or self._failure.reporting_rank == self.launch.rank

    def finish(self) -> None:
        """Exit without an error; the others stay until rank 0 has finished."""
        self._tell({"done": True})
        with self._changed:
            if not self.is_main_process:
                self._changed.wait_for(lambda: 0 in self._done or self._failure)
            if self.is_main_process or 0 not in self._done:
                self._raise_if_failed()
            self._done |= self._peers.keys()

    @property
    def exit_code(self) -> int:
        """Exit code of this process when another has reported the failure."""
        return self._failure.exit_code if self._failure else CRASHED

    def _tell(self, message: dict[str, Any]) -> None:
        for peer in self._peers.values():
            peer.send(message)

    def _listen(self, peer: Peer) -> None:
        try:
            for line in peer.lines:
                self._take(peer, line)
        except OSError:
            pass  # the same as its end
        with self._changed:
            if peer.rank not in self._done:
                self._record_failure(Failure(ResourceError.exit_code, 1 if peer.rank == 0 else 0, peer.rank))

    def _take(self, peer: Peer, line: bytes) -> None:
        [(kind, value)] = json.loads(line).items()
        with self._changed:
            if kind == "failed":
                self._record_failure(Failure(value, peer.rank, None))
            elif kind == "failure":
                self._record_failure(Failure(*value))
            elif kind == "done":
                self._done.add(peer.rank)
            else:
                self._values.append(value)
            self._changed.notify_all()

    def _record_failure(self, failure: Failure) -> None:
        """The first failure counts; rank 0 decides which it was."""
        if self._failure is not None:
            return
        self._failure = failure
        if self.is_main_process:
            self._tell({"failure": [failure.exit_code, failure.reporting_rank, failure.dead_rank]})
        self._changed.notify_all()
        leaving = threading.Timer(GRACE_SECONDS, self._leave_at_once)
        leaving.daemon = True
        leaving.start()

    def _raise_if_failed(self) -> None:
        if self._failure is None:
            return
        if self._failure.dead_rank is not None and self._failure.reporting_rank == self.launch.rank:
            raise self._loss(self._failure.dead_rank)
        raise SystemExit(self._failure.exit_code)

    def _leave_at_once(self) -> None:
        """For a main thread that is stuck, such as in a collective operation on a GPU."""
        failure = self._failure
        assert failure is not None  # it started the timer
        if failure.dead_rank is not None and failure.reporting_rank == self.launch.rank and not self._has_left:
            console.err.quiet = False
            console.show_error(self._loss(failure.dead_rank))
        if console.err.is_terminal:
            console.err.show_cursor(True)
        sys.stderr.flush()
        os._exit(failure.exit_code)

    def _loss(self, rank: int) -> QloraError:
        return ResourceError(
            f"process {rank} of {self.launch.world_size} (pid {self._peers[rank].pid}) was killed",
            hint="the kernel kills for memory (look with `dmesg`), a scheduler for time; then start the same command "
            "with --resume",
        )


SINGLE_PROCESS = ProcessMonitor(Launch(), [])


@contextmanager
def monitored(launch: Launch) -> Iterator[ProcessMonitor]:
    """Train together with the other processes of the launch while the block runs.

    Rank 0 prints; another process prints nothing but its own error. Raises what the block raises where this process
    reports_failure for all, else SystemExit with the exit code of the one that does.
    """
    if launch.world_size == 1:
        yield SINGLE_PROCESS
        return
    consoles = (console.out, console.err)
    monitor = ProcessMonitor(launch, rendezvous(launch))
    for one in consoles:
        one.quiet = launch.rank > 0
    try:
        yield monitor
        monitor.finish()
    except BaseException as fault:
        if not monitor.reports_failure(_exit_code(fault)):
            raise SystemExit(monitor.exit_code) from fault
        raise
    finally:
        for one in consoles:
            one.quiet = False


def _exit_code(fault: BaseException) -> int:
    if isinstance(fault, QloraError | Interruption):
        return fault.exit_code
    if isinstance(fault, SystemExit) and isinstance(fault.code, int):
        return fault.code
    if (refused := disk_error(fault)) is not None:
        return refused.exit_code
    return CRASHED
