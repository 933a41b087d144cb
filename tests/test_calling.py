"""A program that calls a function of ours finds everything as it was: signals, streams, environment, memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import weakref

import pytest
import torch

from qlora_cli import console
from qlora_cli.calling import called
from qlora_cli.errors import ResourceError, StoppedBySignal
from qlora_cli.interruption import STOP_SIGNALS, Interruption, interruptible, is_listening

NUMBERS = (*STOP_SIGNALS, signal.SIGALRM)


@called
def stop_late(number: int) -> None:
    """Training in short: it continues to the end of the step, and then says where it stands."""
    try:
        signal.raise_signal(number)
    except Interruption:
        raise StoppedBySignal("stopped at step 3 of 8", signal_number=number, hint="continue") from None


@called
def fail_with_a_model(made: list[weakref.ref]) -> None:
    model = torch.nn.Linear(2, 2)
    made.append(weakref.ref(model))
    try:
        raise MemoryError
    except MemoryError as fault:
        raise ResourceError("no memory") from fault


@called
def do(something):
    return something()


def test_ctrl_c_is_a_keyboard_interrupt_that_says_how_to_go_on():
    with pytest.raises(KeyboardInterrupt) as caught:
        stop_late(signal.SIGINT)
    assert str(caught.value) == "stopped at step 3 of 8\nhint: continue"


def test_ctrl_c_anywhere_else_is_a_keyboard_interrupt_too():
    with pytest.raises(KeyboardInterrupt, match="nothing is left half written"):
        do(lambda: signal.raise_signal(signal.SIGINT))


def test_the_handler_of_the_program_hears_of_the_signal_after_the_function_is_over():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append((number, is_listening())))
    try:
        with pytest.raises(StoppedBySignal, match="step 3 of 8"):
            stop_late(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [(signal.SIGTERM, False)]


@pytest.mark.slow
def test_a_signal_that_ends_programs_ends_this_one_after_it_was_told(tmp_path):
    code = "import signal; from tests.test_calling import stop_late; stop_late(signal.SIGTERM); print('went on')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (-signal.SIGTERM, "")
    assert "stopped at step 3 of 8" in ran.stderr


def test_a_second_ctrl_c_does_not_wait_and_does_not_end_the_program():
    @called
    def tidy_up_for_ever() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)
            pytest.fail("went on")

    with pytest.raises(KeyboardInterrupt) as caught:
        tidy_up_for_ever()
    assert str(caught.value) == ""  # Python's own


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_handlers_and_alarms_are_those_of_before(number):
    rang = []
    before = {each: signal.signal(each, lambda *_: rang.append(1)) for each in NUMBERS}
    mine = [signal.getsignal(each) for each in NUMBERS]
    try:
        do(lambda: signal.raise_signal(signal.SIGALRM))  # the program's own alarm is still its own
        with pytest.raises(StoppedBySignal):
            stop_late(number)
        assert [signal.getsignal(each) for each in NUMBERS] == mine
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert len(rang) == 2


def test_a_thread_works_without_signals():
    found = []
    thread = threading.Thread(target=lambda: found.append(do(lambda: 7)))
    thread.start()
    thread.join()
    assert found == [7]


def test_the_environment_is_as_before(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    before = dict(os.environ)

    def change() -> None:
        del os.environ["RANK"]
        os.environ.update({"WORLD_SIZE": "2", "ACCELERATE_MIXED_PRECISION": "bf16"})

    do(change)
    assert dict(os.environ) == before


def test_secrets_are_kept_out_of_what_is_printed_and_the_streams_are_those_of_before(capsys):
    before = sys.stdout, sys.stderr
    token = "hf_" + "AbCdEfGhIj" * 3 + "KlMn"
    do(lambda: print(token))
    assert token not in capsys.readouterr().out
    assert (sys.stdout, sys.stderr) == before


def test_a_model_is_let_go_though_the_error_is_kept():
    made = []
    with pytest.raises(ResourceError) as caught:
        fail_with_a_model(made)
    assert made[0]() is None
    assert isinstance(caught.value.__cause__, MemoryError)


def test_a_command_calls_the_function_bare():
    with pytest.raises(Interruption), interruptible():
        do(lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(StoppedBySignal), interruptible():
        stop_late(signal.SIGINT)


def test_what_is_shown_to_a_notebook_is_plain_text():
    assert not console.out.is_jupyter
    assert not console.err.is_jupyter


@pytest.mark.slow
def test_colours_can_be_asked_for_where_bars_cannot_be_drawn():
    """FORCE_COLOR stands in the environment of every notebook."""
    code = "from qlora_cli.console import err, warn; warn('hot'); print(err.is_terminal)"
    environment = os.environ | {"FORCE_COLOR": "1"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"
    assert ran.stderr == "\x1b[33mwarning: \x1b[0mhot\n"
