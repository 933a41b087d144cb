"""The first stop signal ends a block in good order, wherever it comes; the second one ends the process."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from qlora_cli import interruption
from qlora_cli.errors import QloraError, StoppedBySignal
from qlora_cli.interruption import STOP_SIGNALS, Interruption, interruptible, keyboard_interrupts


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def ends_with(work: Callable[[], None]) -> int:
    """How a forked process ends that does some work interruptibly: 0 where it is not stopped."""
    child = os.fork()
    if child == 0:
        try:
            with interruptible():
                work()
        except Interruption as stop:
            os._exit(stop.exit_code)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_signal_is_an_interruption_that_tidies_up_on_its_way(number):
    tidied = []
    with pytest.raises(Interruption, match=number.name) as caught, interruptible():
        try:
            send(number)
        finally:
            tidied.append(number)
    assert caught.value.exit_code == 128 + number
    assert tidied == [number]


def test_no_library_takes_an_interruption_for_an_exception():
    assert not issubclass(Interruption, Exception)


@pytest.mark.slow
@pytest.mark.parametrize("second", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_second_signal_ends_the_process_at_once(second):
    def tidy_up_for_ever() -> None:
        try:
            send(signal.SIGTERM)
        finally:
            send(second)
            time.sleep(60)

    assert ends_with(tidy_up_for_ever) == -second


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_signal_that_was_ignored_stays_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with interruptible():
            send(number)
    finally:
        signal.signal(number, before)


def test_handlers_are_those_of_before_when_the_block_is_over():
    numbers = (*STOP_SIGNALS, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(Interruption), interruptible():
        send(signal.SIGHUP)
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def swallowed_by_an_except() -> None:
    with suppress(BaseException):  # what some library does
        send(signal.SIGTERM)


class Finalized:
    def __del__(self) -> None:
        send(signal.SIGTERM)


def swallowed_by_a_finalizer() -> None:
    Finalized()
    gc.collect()


@pytest.mark.parametrize("swallow", [swallowed_by_an_except, swallowed_by_a_finalizer])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interruption_that_gets_lost_comes_again(monkeypatch, swallow):
    monkeypatch.setattr(interruption, "AGAIN_SECONDS", 0.05)
    with pytest.raises(Interruption, match="SIGTERM"), interruptible():
        swallow()
        for _ in range(100):
            time.sleep(0.05)


def named_in_a_class() -> None:
    class Descriptor:
        def __set_name__(self, owner: type, name: str) -> None:
            send(signal.SIGTERM)

    type("Owner", (), {"it": Descriptor()})  # Python 3.11 makes a RuntimeError of what is raised there


def taken_for_a_fault() -> None:
    try:
        send(signal.SIGTERM)
    except BaseException as fault:
        raise QloraError("the base cannot be read") from fault


def left_with_another_code() -> None:
    try:
        send(signal.SIGTERM)
    finally:
        sys.exit(1)


@pytest.mark.parametrize("disguise", [named_in_a_class, taken_for_a_fault, left_with_another_code])
def test_whatever_ends_the_block_after_a_signal_is_the_interruption(disguise):
    with pytest.raises(Interruption, match="SIGTERM"), interruptible():
        disguise()


def test_what_says_more_of_the_signal_and_an_exit_with_all_done_stay():
    for ending in (StoppedBySignal("stopped at step 3", signal_number=15), SystemExit(0), SystemExit(143)):
        with pytest.raises(type(ending)) as caught, interruptible():
            with suppress(BaseException):
                send(signal.SIGTERM)
            raise ending
        assert caught.value is ending


def test_a_fault_without_a_signal_stays_what_it_is():
    with pytest.raises(RuntimeError, match="a fault"), interruptible():
        raise RuntimeError("a fault")


def test_an_interruption_that_gets_lost_prints_nothing(capfd, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)  # pytest has one of its own
    with pytest.raises(Interruption), interruptible():
        swallowed_by_a_finalizer()
        raise KeyError
    assert capfd.readouterr().err == ""


def test_tidying_up_is_not_interrupted_again(monkeypatch):
    monkeypatch.setattr(interruption, "AGAIN_SECONDS", 0.02)
    tidied = []

    def numbers():
        try:
            yield 1
        finally:
            time.sleep(0.1)
            tidied.append("generator")

    with pytest.raises(Interruption), interruptible():
        try:
            for _ in numbers():
                send(signal.SIGTERM)
        finally:
            try:
                raise KeyError
            except KeyError:
                time.sleep(0.1)
            tidied.append("block")
    assert sorted(tidied) == ["block", "generator"]


@pytest.mark.slow
def test_where_a_launcher_started_several_processes_an_echo_is_no_second_signal(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")

    def hear_an_echo() -> None:
        try:
            send(signal.SIGINT)
        finally:
            send(signal.SIGINT)
            send(signal.SIGTERM)

    assert ends_with(hear_an_echo) == 130


@pytest.mark.slow
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_forked_process_leaves_ctrl_c_to_its_parent_and_dies_by_a_plain_kill(number, exit_code):
    def fork_and_signal() -> None:
        child = os.fork()
        if child == 0:
            send(number)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == exit_code

    assert ends_with(fork_and_signal) == 0


def test_ctrl_c_can_be_caught_where_it_means_something_else():
    with interruptible(), keyboard_interrupts():
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        with pytest.raises(Interruption, match="SIGTERM"):
            send(signal.SIGTERM)


def test_a_ctrl_c_that_nobody_caught_is_an_interruption():
    with pytest.raises(Interruption, match="SIGINT"), interruptible(), keyboard_interrupts():
        send(signal.SIGINT)
