"""A clean exit on a signal: Ctrl-C, `kill`, a closed terminal, the notice of a scheduler.

The first signal raises `Interruption` in the main thread, wherever that is, so that whatever was begun is tidied up on
the way out. A second one ends the process immediately, as if there were no handler.

What Python or a library makes of the interruption on its way does not count: once a signal has come, whatever ends the
block is the interruption. Python 3.11 wraps it in a RuntimeError where a class is being made, extension modules in an
ImportError or SystemError.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

    from qlora_cli.errors import StoppedBySignal

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Ctrl-C, `kill`, a closed terminal, and the notice that Slurm sends before a job's time is up."""

ECHO_SECONDS = 2.0
"""For so long after the first signal others are echoes of it, where a launcher started several processes: it passes on
to all of them what the terminal has sent them already."""

AGAIN_SECONDS = 1.0
"""After so long an interruption that has got lost is raised again."""

SOON_SECONDS = 0.05
"""After so long an interruption is tried again that came while torch was being imported."""

STOPPED_EARLY = "stopped before it was done; nothing is left half written"

_handlers_of_caller: dict[int, Any] = {}  # of a program that calls a function of ours, while the function runs
_is_listening = False


class Interruption(BaseException):
    """A stop signal has come. No `Exception`, so that no library takes it for a fault of its own."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"{signal.Signals(signal_number).name}")
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as a shell has it."""
        return 128 + self.signal_number

    @property
    def farewell(self) -> str:
        """The last line of a command that is stopped."""
        return f"{self}: {STOPPED_EARLY}"


class Interrupter:
    """Turns the first stop signal into an `Interruption`.

    Args:
        patience_seconds: for so long after the first signal others are echoes of it.
    """

    def __init__(self, patience_seconds: float = 0.0) -> None:
        self.signal_number: int | None = None
        """The first stop signal that came."""

        self._process = os.getpid()
        self._patience_seconds = patience_seconds
        self._asked_at = 0.0
        self._handler_of_alarm: Any = None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal; a forked process that has not made its own arrangements yet does not stop for it."""
        if os.getpid() != self._process:
            if number == signal.SIGTERM:
                _die_of(number)
        elif self.signal_number is None:
            self.signal_number = number
            self._asked_at = time.monotonic()
            self._handler_of_alarm = signal.signal(signal.SIGALRM, self.remind)
            self._raise(frame)
        elif time.monotonic() >= self._asked_at + self._patience_seconds:
            leave_at_once(number)

    def remind(self, number: int, frame: FrameType | None) -> None:
        """Handle the alarm: what is raised in `__del__`, in a callback from C or below a bare `except` gets lost."""
        if _is_on_its_way():
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
        else:
            self._raise(frame)

    def close(self) -> None:
        """Remind no more; an alarm is the caller's own again."""
        if self.signal_number is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._handler_of_alarm)

    def _raise(self, frame: FrameType | None) -> None:
        assert self.signal_number is not None  # a signal has come
        if _is_importing_torch(frame):
            signal.setitimer(signal.ITIMER_REAL, SOON_SECONDS)
            return
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
        raise Interruption(self.signal_number)


def _is_importing_torch(frame: FrameType | None) -> bool:
    """Whether a module of torch is being run for the first time: its C++ aborts the process over an exception then."""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__", "").partition(".")[0] == "torch":
            return True
        frame = frame.f_back
    return False


def _is_on_its_way() -> bool:
    """Whether the main thread is tidying up; a generator that is closed on the way knows only of its own end."""
    fault = sys.exception()
    while fault is not None:
        if isinstance(fault, Interruption | GeneratorExit):
            return True
        fault = fault.__context__
    return False


@contextmanager
def interruptible() -> Iterator[None]:
    """The block ends with an `Interruption` at the first stop signal; it runs in the main thread.

    What was ignored when the block began stays ignored: SIGHUP under `nohup`, Ctrl-C for a script's `command &`.

    Raises:
        Interruption: in place of whatever else ends the block after a stop signal, but for `StoppedBySignal`, which
            says more, and an exit that says that all is done.
    """
    global _is_listening
    has_launcher = os.environ.get("WORLD_SIZE", "1") != "1"
    interrupter = Interrupter(ECHO_SECONDS if has_launcher else 0)
    before = {number: signal.signal(number, interrupter.receive) for number in heeded_signals()}
    was_listening, _is_listening = _is_listening, True
    shown_before, sys.unraisablehook = sys.unraisablehook, _show_no_interruption
    try:
        yield
    except BaseException as fault:
        number = interrupter.signal_number
        if number is None or _says_so(fault, number):
            raise
        raise Interruption(number) from fault
    finally:
        _is_listening = was_listening
        interrupter.close()
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = shown_before


def _says_so(fault: BaseException, signal_number: int) -> bool:
    """Whether what ends a block after a signal needs no other words.

    `StoppedBySignal` is known by its exit code: importing it here would take 30 ms in which nobody heeds a signal.
    """
    if isinstance(fault, KeyboardInterrupt):  # of a program that calls, whose own handler got the second signal
        return bool(_handlers_of_caller)
    if isinstance(fault, SystemExit):
        return fault.code in (None, 0, 128 + signal_number)
    return isinstance(fault, Interruption) or getattr(fault, "exit_code", 0) > 128


def _show_no_interruption(unraisable: UnraisableHookArgs) -> None:
    """Stay silent on an interruption that gets lost in a finalizer or callback: it is raised again."""
    if not isinstance(unraisable.exc_value, Interruption):
        sys.__unraisablehook__(unraisable)


def is_listening() -> bool:
    """Whether the code that runs is in an `interruptible` block, such as that of a command."""
    return _is_listening


def is_in_main_thread() -> bool:
    """Whether this thread gets the signals, and may choose who handles them."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def handed_on() -> Iterator[None]:
    """The block is a function of ours that somebody's program calls, such as a cell of a notebook.

    The first stop signal ends the block cleanly and then goes to the program's own handler, as if it had come
    after the block: Ctrl-C becomes a `KeyboardInterrupt` that says how to continue, SIGTERM ends the program. A second
    one goes there immediately. Threads other than the main one get no signals.

    Raises:
        KeyboardInterrupt: after Ctrl-C, where the program has no handler of its own.
        StoppedBySignal, Interruption: where the program's own handler returned.
    """
    if not is_in_main_thread():
        yield
        return
    from qlora_cli import console  # here, since signals are heeded before what takes time to import
    from qlora_cli.errors import StoppedBySignal

    handlers = {int(number): signal.getsignal(number) for number in heeded_signals()}
    _handlers_of_caller.update(handlers)
    try:
        with interruptible():
            yield
    except (StoppedBySignal, Interruption) as stop:
        number = stop.signal_number
        if handlers[number] is signal.default_int_handler:
            raise KeyboardInterrupt(_told(stop)) from None
        console.note(_told(stop))
        signal.raise_signal(number)
        raise
    finally:
        _handlers_of_caller.clear()


def _told(stop: StoppedBySignal | Interruption) -> str:
    if isinstance(stop, Interruption):
        return STOPPED_EARLY
    [problem] = stop.problems
    return f"{problem.text}\nhint: {problem.hint}" if problem.hint else problem.text


@contextmanager
def postponed() -> Iterator[None]:
    """Stop signals that come in the block are heeded after it: a message is printed completely or not at all."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def keyboard_interrupts() -> Iterator[None]:
    """Ctrl-C is a `KeyboardInterrupt` in the block, which may be caught; what leaves the block is an interruption."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt as fault:
        raise Interruption(signal.SIGINT) from fault
    finally:
        signal.signal(signal.SIGINT, before)


def heeded_signals() -> list[signal.Signals]:
    """The stop signals that are not ignored, nor handled by code in C, which could not be given them back."""
    return [number for number in STOP_SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]


def leave_at_once(number: int) -> None:
    """Act as if there were no handler: the program that called decides, or the process ends."""
    handler = _handlers_of_caller.get(number, signal.SIG_DFL)
    signal.signal(number, handler)
    signal.raise_signal(number)


def _die_of(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
