"""An evaluation that a run was killed in, after its checkpoint was saved: the resumed run makes up for it."""

from __future__ import annotations

from pathlib import Path

from transformers import TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import IntervalStrategy

from qlora_cli.run.metrics import read_metrics


def is_evaluation_missing(checkpoint: Path, arguments: TrainingArguments, metrics_path: Path) -> bool:
    """Whether an evaluation belongs to the step of a checkpoint and its line is not there.

    At the end of an epoch the checkpoint comes first: what was trained must not depend on what is measured.
    """
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    if not _belongs_to(state, arguments):
        return False
    return not any(line["step"] == state.global_step and "eval_loss" in line for line in read_metrics(metrics_path))


def _belongs_to(state: TrainerState, arguments: TrainingArguments) -> bool:
    is_last = state.global_step >= state.max_steps
    if arguments.eval_strategy == IntervalStrategy.STEPS:
        return is_last or state.global_step % int(arguments.eval_steps) == 0
    if arguments.eval_strategy == IntervalStrategy.EPOCH:
        return is_last or (state.epoch is not None and float(state.epoch).is_integer())
    return False
