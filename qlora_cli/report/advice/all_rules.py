"""Every rule, asked of one run."""

from __future__ import annotations

from typing import Any

from qlora_cli.report.advice.advice import Advice
from qlora_cli.report.advice.curve_rules import (
    data_too_small,
    no_convergence,
    overfitting,
    rate_too_high,
    rate_too_low,
    too_few_steps,
)
from qlora_cli.report.advice.result_rules import (
    forgetting,
    loss_without_gain,
    memory_ran_out,
    no_held_out_rows,
    poor_generation,
)
from qlora_cli.report.curve import is_number
from qlora_cli.report.record import RunRecord


def advice_for(record: RunRecord) -> list[Advice]:
    """What to do about a run, the gravest first; empty where nothing stands out.

    Of a run that still trains only that is said which more steps will not change.
    """
    losses, evals = record.curve("loss"), record.curve("eval_loss")
    rate = record.number("training.learning_rate")
    verdicts, tasks = (_objects(record.results.get(key)) for key in ("verdicts", "tasks"))
    found = [
        rate_too_high(losses, record.curve("grad_norm"), rate, record.number("training.warmup_ratio")),
        forgetting(verdicts, rate),
        overfitting(
            losses,
            evals,
            keeps_best=record.recipe.get("training.load_best_model_at_end") is True,
            patience=record.number("training.early_stopping_patience"),
        ),
        data_too_small(losses, evals, record.epochs, _whole(record.data_report.get("num_train"))),
        poor_generation(tasks, _longest_answer(record)),
        loss_without_gain(verdicts),
        memory_ran_out(*_micro_batch(record), _rows_per_step(record)),
        no_held_out_rows(_whole(record.data_report.get("num_eval")), _whole(record.data_report.get("num_train"))),
    ]
    if record.is_over:
        found += [
            no_convergence(losses, evals, rate),
            rate_too_low(losses, rate),
            too_few_steps(losses, evals, record.max_steps, record.epochs),
        ]
    return [advice for advice in found if advice is not None]


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _whole(value: Any) -> int | None:
    return int(value) if is_number(value) else None


def _longest_answer(record: RunRecord) -> int | None:
    tasks = record.recipe.get("eval.tasks")
    lengths = [_whole(task.get("max_new_tokens")) for task in tasks or () if isinstance(task, dict)]
    return max((length for length in lengths if length is not None), default=None)


def _micro_batch(record: RunRecord) -> tuple[int | None, int | None]:
    """Rows of a forward pass as planned and as used at the end."""
    values = record.section("memory").get("micro_batch_size")
    values = values if isinstance(values, dict) else {}
    return _whole(values.get("planned")), _whole(values.get("used"))


def _rows_per_step(record: RunRecord) -> int | None:
    size = record.recipe.get("training.per_device_train_batch_size")
    steps = _whole(record.recipe.get("training.gradient_accumulation_steps"))
    if steps is None:
        return None
    return steps * int(size) if is_number(size) else steps  # with `auto`, the accumulation steps are the rows
