"""Display of a running training: a bar in a terminal, else a line now and then; every step in metrics.jsonl."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qlora_cli import console
from qlora_cli.constants import GIB
from qlora_cli.progress import Phase, progress
from qlora_cli.run.metrics import append_metrics
from qlora_cli.sparkline import Sparkline
from qlora_cli.train.callbacks.gpu_state import gpu_state
from qlora_cli.train.callbacks.peak_memory import peak_memory_bytes

RECORDED = ("loss", "learning_rate", "grad_norm", "mean_token_accuracy", "eval_loss", "eval_perplexity")
NUM_PLAIN_LINES = 20
LEAST_SECONDS, MOST_SECONDS = 2.0, 60.0
"""Between two lines about steps, where there is no bar."""


class ProgressCallback(TrainerCallback):
    """Writes metrics.jsonl and shows loss, tokens/s, memory and time left.

    Args:
        metrics_path: the run's metrics.jsonl.
        tokens_per_epoch: tokens of all documents that one pass reads, padding left out.
        on_begin: called with the steps of the full run, once they are known.
    """

    def __init__(
        self, metrics_path: Path, tokens_per_epoch: int, on_begin: Callable[[int], None] | None = None
    ) -> None:
        self._metrics_path = metrics_path
        self._tokens_per_epoch = tokens_per_epoch
        self._on_begin = on_begin
        self._bar: Phase | None = None
        self._screen = ExitStack()
        self._last_time = self._last_epoch = 0.0
        self._last_line = -math.inf
        self._eval_loss = ""
        """The last one, in words, for the bar."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._last_time, self._last_epoch = time.monotonic(), float(state.epoch or 0)
        if self._on_begin is not None:
            self._on_begin(state.max_steps)
        self._bar = self._screen.enter_context(progress("training", state.max_steps, is_lasting=True))
        self._bar.begin_at(state.global_step)
        self._bar.curve = Sparkline()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: object,
    ) -> None:
        values = {key: logs[key] for key in RECORDED if logs and key in logs}
        if "loss" not in values and "eval_loss" not in values:  # the summary at the end, with what no line holds yet
            return
        if "loss" in values:
            values |= self._speed(state)
        append_metrics(self._metrics_path, {"step": state.global_step, "epoch": state.epoch, **values})
        self._show(state, values)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar off the screen; also for a run that ends by an error."""
        self._bar = None
        self._screen.close()

    def _speed(self, state: TrainerState) -> dict[str, float | int]:
        now, epoch = time.monotonic(), float(state.epoch or 0)
        num_tokens = (epoch - self._last_epoch) * self._tokens_per_epoch
        tokens_per_second = num_tokens / max(now - self._last_time, 1e-9)
        self._last_time, self._last_epoch = now, epoch
        return {"tokens_per_second": round(tokens_per_second, 1), "peak_memory_bytes": peak_memory_bytes()}

    def _show(self, state: TrainerState, values: dict[str, Any]) -> None:
        if "eval_loss" in values:
            console.note(
                f"step {state.global_step}: eval loss {values['eval_loss']:.4f}, "
                f"perplexity {values['eval_perplexity']:.2f}"
            )
            self._eval_loss = f"  eval {values['eval_loss']:.4f}"
            self._last_time = time.monotonic()  # the next step's speed must not pay for the evaluation
            return
        shown = (
            f"loss {values['loss']:.4f}  {values['tokens_per_second']:,.0f} tokens/s  "
            f"{values['peak_memory_bytes'] / GIB:.1f} GiB"
        )
        if self._bar is not None:
            if self._bar.curve is not None and math.isfinite(values["loss"]):
                self._bar.curve.add(values["loss"])
            in_bar = shown.replace("  ", f"{self._eval_loss}  ", 1)
            card = gpu_state() if console.err.is_interactive else ""  # three calls of the driver, for a screen alone
            self._bar.update(state.global_step, f"{in_bar}  {card}".rstrip())
        if not console.err.is_interactive and self._line_is_due(state):
            self._last_line = time.monotonic()
            console.note(f"step {state.global_step}/{state.max_steps}  {shown}")

    def _line_is_due(self, state: TrainerState) -> bool:
        """The last step's, and now and then another's."""
        seconds = time.monotonic() - self._last_line
        is_round = state.global_step % max(state.max_steps // NUM_PLAIN_LINES, 1) == 0
        return state.global_step == state.max_steps or seconds >= (LEAST_SECONDS if is_round else MOST_SECONDS)
