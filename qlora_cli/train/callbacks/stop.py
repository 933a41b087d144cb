"""Stopping on request: the first signal asks for a checkpoint and an end, the second ends the process immediately."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qlora_cli import console
from qlora_cli.errors import StoppedBySignal
from qlora_cli.interruption import Interruption, heeded_signals, is_in_main_thread, leave_at_once
from qlora_cli.run.checkpoints import list_checkpoints
from qlora_cli.run.directory import RunDirectory
from qlora_cli.train.processes.collectives import ProcessGroup


@contextmanager
def interruption_as_error(run: RunDirectory) -> Iterator[None]:
    """The block is the part of a session in which no step is under way.

    Raises:
        StoppedBySignal: in place of an interruption: where the run stands, and how to continue.
    """
    try:
        yield
    except Interruption as stop:
        steps = [checkpoint.step for checkpoint in list_checkpoints(run.checkpoints_path)]
        done = f"the run stands at step {steps[-1]}" if run.is_started and steps else "nothing is trained yet"
        raise StoppedBySignal(
            f"stopped by {stop}; {done}",
            signal_number=stop.signal_number,
            hint=f"continue with `{run.resume_command}`" if run.is_started else "start it again with the same command",
        ) from stop


class StopRequest:
    """Whether and why the run should end at the next step boundary.

    Args:
        patience_seconds: for so long after the first signal others are echoes of it. A launcher passes on to all
            processes what the terminal has sent them already.
    """

    def __init__(self, patience_seconds: float = 0.0) -> None:
        self.signal_number: int | None = None
        self._patience_seconds = patience_seconds
        self._asked_at = 0.0

    def is_set(self) -> bool:
        """Whether a signal has come to this process."""
        return self.signal_number is not None

    @contextmanager
    def installed(self) -> Iterator[StopRequest]:
        """Take the stop signals while the block runs; what handled them before handles them after.

        A thread other than the main one gets none, so that a session in it cannot be stopped by one.
        """
        if not is_in_main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._receive) for number in heeded_signals()}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None:
            if time.monotonic() < self._asked_at + self._patience_seconds:
                return
            leave_at_once(number)
            return
        self.signal_number = number
        self._asked_at = time.monotonic()
        console.note(
            f"{signal.Signals(number).name}: finishing this step and saving a checkpoint; again to exit immediately"
        )


class StopCallback(TrainerCallback):
    """Ends the run at a step boundary, with a checkpoint, and saves one at the last step too.

    Args:
        request: set by a signal.
        stop_after: optimizer steps to do in this session; None for all of them.
        group: the processes that stop together, whichever of them got the signal.
    """

    def __init__(self, request: StopRequest, stop_after: int | None, group: ProcessGroup | None = None) -> None:
        self._request = request
        self._group = group or ProcessGroup()
        self._stop_after = stop_after
        self._first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._first_step = state.global_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        num_steps_done = state.global_step - self._first_step
        is_enough = self._stop_after is not None and num_steps_done >= self._stop_after
        if self._group.all_reduce_max(self._request.signal_number or 0) or is_enough:
            control.should_save = True
            control.should_training_stop = True
        if state.global_step >= state.max_steps:
            control.should_save = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        # The trainer takes a stop for the end of the epoch and would evaluate; whoever stops a run wants to leave.
        is_mid_epoch = state.epoch is not None and not float(state.epoch).is_integer()
        if control.should_training_stop and state.global_step < state.max_steps and is_mid_epoch:
            control.should_evaluate = False
            control.should_save = False
