"""A first signal asks for a checkpoint and an end, a second ends the process; a stop ends at a step boundary."""

from __future__ import annotations

import os
import signal

import pytest
from transformers import TrainerControl, TrainerState

from qlora_cli.interruption import STOP_SIGNALS
from qlora_cli.train.callbacks.stop import StopCallback, StopRequest


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_signal_is_remembered_and_said_instead_of_ending_the_process(number, capsys):
    request = StopRequest()
    with request.installed():
        os.kill(os.getpid(), number)
        assert request.signal_number == number
    assert f"{number.name}: finishing this step and saving a checkpoint" in capsys.readouterr().err


def test_signals_are_handled_as_before_when_the_run_is_over():
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with pytest.raises(KeyError), StopRequest().installed():
        assert [signal.getsignal(number) for number in STOP_SIGNALS] != before
        raise KeyError
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_leaves_at_once(second):
    child = os.fork()
    if child == 0:
        with StopRequest().installed():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), second)
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == second


def step(callback: StopCallback, number: int, max_steps: int = 100) -> TrainerControl:
    """The trainer's control at the end of a step."""
    control = TrainerControl()
    callback.on_step_end(None, TrainerState(global_step=number, max_steps=max_steps), control)
    return control


def test_a_step_without_a_request_is_followed_by_the_next():
    control = step(StopCallback(StopRequest(), None), 5)
    assert not control.should_training_stop
    assert not control.should_save


def test_a_signal_stops_the_run_after_the_step_with_a_checkpoint():
    request = StopRequest()
    request.signal_number = signal.SIGINT
    control = step(StopCallback(request, None), 5)
    assert control.should_training_stop
    assert control.should_save


def test_stop_after_counts_the_steps_of_this_session():
    callback = StopCallback(StopRequest(), 3)
    callback.on_train_begin(None, TrainerState(global_step=10), TrainerControl())
    stops = [step(callback, number).should_training_stop for number in (11, 12, 13)]
    assert stops == [False, False, True]


def test_the_last_step_always_writes_a_checkpoint():
    callback = StopCallback(StopRequest(), None)
    assert not step(callback, 99).should_save
    assert step(callback, 100).should_save


@pytest.mark.parametrize(
    ("epoch", "stops", "evaluates"),
    [(0.4, True, False), (1.0, True, True), (0.4, False, True)],
    ids=["stopped in mid-epoch", "stopped at its end", "not stopped"],
)
def test_whoever_stops_in_mid_epoch_does_not_wait_for_an_evaluation(epoch, stops, evaluates):
    control = TrainerControl(should_training_stop=stops, should_evaluate=True, should_save=True)
    state = TrainerState(global_step=4, max_steps=100, epoch=epoch)
    StopCallback(StopRequest(), None).on_epoch_end(None, state, control)
    assert (control.should_evaluate, control.should_save) == (evaluates, evaluates)
