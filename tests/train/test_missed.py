"""An evaluation that belongs to a checkpoint's step and is not in metrics.jsonl is one to make up for."""

from __future__ import annotations

import pytest
from transformers import TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from qlora_cli.run.metrics import append_metrics
from qlora_cli.train.checkpoint.resume import is_evaluation_missing


def missing(folder, strategy, step, epoch, *, max_steps=9, evaluated=()):
    """Whether it is, for a checkpoint of a run that evaluates every second step or every epoch."""
    TrainerState(global_step=step, max_steps=max_steps, epoch=epoch).save_to_json(str(folder / TRAINER_STATE_NAME))
    for number in range(1, step + 1):
        append_metrics(folder / "metrics.jsonl", {"step": number, "loss": 1.0})
        if number in evaluated:
            append_metrics(folder / "metrics.jsonl", {"step": number, "eval_loss": 1.0})
    arguments = TrainingArguments(str(folder), eval_strategy=strategy, eval_steps=2, use_cpu=True, report_to="none")
    return is_evaluation_missing(folder, arguments, folder / "metrics.jsonl")


@pytest.mark.parametrize(
    ("strategy", "step", "epoch", "is_due"),
    [
        ("epoch", 3, 1.0, True),
        ("epoch", 4, 1.4, False),
        ("epoch", 9, 3.4, True),
        ("steps", 4, 1.4, True),
        ("steps", 5, 1.7, False),
        ("steps", 9, 3.4, True),
        ("no", 9, 3.0, False),
    ],
    ids=["epoch's end", "in an epoch", "last", "second step", "step between", "last step", "never"],
)
def test_an_evaluation_is_missing_where_one_belongs_and_none_is_written(tmp_path, strategy, step, epoch, is_due):
    assert missing(tmp_path, strategy, step, epoch) is is_due


@pytest.mark.parametrize(("strategy", "step"), [("epoch", 3), ("steps", 4)])
def test_an_evaluation_that_was_written_is_not_missing(tmp_path, strategy, step):
    assert not missing(tmp_path, strategy, step, step / 3 if strategy == "epoch" else 1.4, evaluated=(2, step))


def test_the_evaluation_of_another_step_does_not_count(tmp_path):
    assert missing(tmp_path, "epoch", 6, 2.0, evaluated=(3,))
