"""Decisions by the eval loss: which step was the best, and whether the run should end early.

The evaluations are those of metrics.jsonl. A resumed run forgets the lines after its checkpoint and measures them
again, so what is decided by them is decided as in a run without a stop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qlora_cli.recipe.schema import TrainingSection
from qlora_cli.run.metrics import read_metrics

Losses = Mapping[int, float]
"""Optimizer steps done -> eval loss."""


def best_step(losses: Losses) -> int | None:
    """The step with the lowest eval loss, the first of several; None where nothing was measured.

    >>> best_step({10: 2.0, 20: 1.5, 30: 1.5})
    20
    """
    return min(losses, key=lambda step: (losses[step], step), default=None)


def num_without_gain(losses: Losses, threshold: float) -> int:
    """Evaluations in a row, up to the last one, that were not below the lowest before them by more than `threshold`.

    >>> num_without_gain({10: 2.0, 20: 1.5, 30: 1.6, 40: 1.5}, threshold=0.0)
    2
    >>> num_without_gain({10: 2.0, 20: 1.95, 30: 1.9}, threshold=0.1)
    2
    """
    lowest = float("inf")
    num = 0
    for step in sorted(losses):
        num = 0 if losses[step] < lowest - threshold else num + 1
        lowest = min(lowest, losses[step])
    return num


@dataclass(frozen=True)
class EarlyStop:
    """Why a run has ended before its last step."""

    step: int
    num_evaluations: int
    """In a row that were no better."""

    best_step: int
    best_eval_loss: float

    def __str__(self) -> str:
        times = "1 evaluation" if self.num_evaluations == 1 else f"{self.num_evaluations} evaluations in a row"
        return (
            f"stopped early at step {self.step}: {times} did not improve on the eval loss {self.best_eval_loss:.4f} "
            f"of step {self.best_step}"
        )

    def as_dict(self) -> dict[str, Any]:
        """As the manifest holds it."""
        return asdict(self)


class EarlyStoppingCallback(TrainerCallback):
    """Ends the run when the eval loss no longer falls, and has the best step saved.

    Args:
        training: the recipe's `early_stopping_*` and `load_best_model_at_end`.
        metrics_path: the run's metrics.jsonl, with the evaluations before a resume.
    """

    def __init__(self, training: TrainingSection, metrics_path: Path) -> None:
        self._patience = training.early_stopping_patience
        self._threshold = training.early_stopping_threshold
        self._keeps_best = training.load_best_model_at_end
        lines = read_metrics(metrics_path)
        self.losses = {line["step"]: line["eval_loss"] for line in lines if line.get("eval_loss") is not None}

    @property
    def kept_step(self) -> int | None:
        """The step whose checkpoint must stay until the end; None where the last adapter is the one that counts."""
        return best_step(self.losses) if self._keeps_best else None

    def early_stop(self, step: int, max_steps: int) -> EarlyStop | None:
        """Why a run at `step` ends there; None while it continues, or where it has all its steps done."""
        num = num_without_gain(self.losses, self._threshold)
        best = best_step(self.losses)
        if self._patience is None or best is None or num < self._patience or step >= max_steps:
            return None
        return EarlyStop(step, num, best, self.losses[best])

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.losses[state.global_step] = kwargs["metrics"]["eval_loss"]
        if self.kept_step == state.global_step:
            control.should_save = True
        if self.early_stop(state.global_step, state.max_steps) is not None:
            control.should_save = control.should_training_stop = True
