"""A warning when the loss has left its level for good: a run that no longer learns should not continue unnoticed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qlora_cli import console
from qlora_cli.run.metrics import read_metrics

WINDOW = 50
"""Losses that the running level looks back on, and the number seen before anything counts as far."""

NUM_DEVIATIONS = 3.0
"""Standard deviations from the level that a process in control does not leave (Shewhart, 1931)."""

LEAST_RISE = 0.1
"""In nats; below it perplexity has risen by less than a tenth, whatever the deviation was."""

PATIENCE = 20
"""Losses in a row that must be far above. Short spikes are common, and Adam recovers from them; the roughly 20 of PaLM
that did not go by were cured by a restart from before them (arXiv:2204.02311, section 5.1)."""


class DivergenceDetector:
    """Running mean and deviation of a loss, and how long it has been far above them.

    Both are exponential moving averages (Finch 2009, "Incremental calculation of weighted mean and variance") of
    the losses that were not far above: a loss that has left its level does not pull it along.

    >>> level = DivergenceDetector()
    >>> any(level.has_diverged(2.0 + 0.1 * (step % 2)) for step in range(100))
    False
    >>> [level.has_diverged(4.0) for step in range(30)].index(True)
    19
    """

    def __init__(self) -> None:
        self.mean = 0.0
        self._variance = 0.0
        self._num_seen = 0
        self._num_far = 0

    @property
    def bound(self) -> float:
        """Bound above which a loss counts as far too high."""
        return self.mean + max(NUM_DEVIATIONS * math.sqrt(self._variance), LEAST_RISE)

    def has_diverged(self, loss: float) -> bool:
        """Take in a loss; True when it is the last of `PATIENCE` in a row that are far above, once each time."""
        if self._num_seen >= WINDOW and loss > self.bound:
            self._num_far += 1
            return self._num_far == PATIENCE
        self._num_far = 0
        self._num_seen += 1
        weight = max(1 / self._num_seen, 2 / (WINDOW + 1))
        difference = loss - self.mean
        self.mean += weight * difference
        self._variance = (1 - weight) * (self._variance + weight * difference**2)
        return False


class LossDivergenceCallback(TrainerCallback):
    """Says when the logged loss has left its level.

    Args:
        metrics_path: the run's metrics.jsonl, from which a resumed run knows the losses before.
    """

    def __init__(self, metrics_path: Path) -> None:
        self._metrics_path = metrics_path
        self._level = DivergenceDetector()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        for line in read_metrics(self._metrics_path):
            if line.get("loss") is not None:
                self._level.has_diverged(line["loss"])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: object,
    ) -> None:
        if logs and "loss" in logs and self._level.has_diverged(logs["loss"]):
            first = state.global_step - (PATIENCE - 1) * args.logging_steps
            console.warn(
                f"since step {first} the loss is above {self._level.bound:.3f}; before, it was about "
                f"{self._level.mean:.3f}. If it does not come back, stop with Ctrl-C and start over with a lower "
                "training.learning_rate"
            )
