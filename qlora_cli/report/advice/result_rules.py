"""Advice read off what was measured after a run, and off what happened to it. Each rule is a pure function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qlora_cli.report.advice.advice import Advice, Change, rounded
from qlora_cli.report.curve import is_number
from qlora_cli.run.eval_results import GENERAL_TEXT, HELD_OUT

MANY_CUT = 0.2
MANY_EMPTY = 0.05
LOSSES = ("loss", "perplexity", "bits_per_byte")

Verdict = Mapping[str, Any]


def forgetting(verdicts: Sequence[Verdict], learning_rate: float | None) -> Advice | None:
    """General text that the tuned model predicts worse than before, beyond the interval."""
    for verdict in verdicts:
        is_worse = verdict.get("task") == GENERAL_TEXT and verdict.get("outcome") == "worse"
        if not is_worse or not all(is_number(verdict.get(key)) for key in ("difference", "low", "high")):
            continue
        changes = [] if learning_rate is None else [Change("training.learning_rate", rounded(learning_rate / 2))]
        return Advice(
            "Forgetting",
            f"On general text the {verdict.get('measure')} changed by {verdict['difference']:+.3f} "
            f"(95% interval {verdict['low']:+.3f} to {verdict['high']:+.3f}).",
            "Mix general rows in, train for less long, or with a lower rate.",
            [Change("data.train", "add a source of general rows"), *changes],
        )
    return None


def poor_generation(tasks: Sequence[Mapping[str, Any]], max_new_tokens: int | None) -> Advice | None:
    """Answers of the tuned model that are cut at their length, or empty."""
    for task in tasks:
        num, cut, empty = task.get("questions"), _of_tuned(task, "cut"), _of_tuned(task, "empty")
        if not is_number(num) or not num:
            continue
        if cut / num >= MANY_CUT:
            used = task.get("max_new_tokens")
            used = used if is_number(used) else max_new_tokens
            longer = Change("eval.tasks.max_new_tokens", 2 * used if used else "twice as many")
            return Advice(
                "Answers do not end",
                f"{task.get('task')}: {cut:,.0f} of {num:,.0f} answers of the tuned model ran into their length.",
                "Give them room; where they repeat themselves, the end of a turn was not learned: `qlora data show` "
                "must show it as trained.",
                [longer],
            )
        if empty / num >= MANY_EMPTY:
            return Advice(
                "Empty answers",
                f"{task.get('task')}: {empty:,.0f} of {num:,.0f} answers of the tuned model are empty.",
                "Rows with an empty answer teach this: take them out.",
                [Change("data.clean.required", "the answer's column")],
            )
    return None


def _of_tuned(task: Mapping[str, Any], key: str) -> float:
    """The highest count of any model but the base."""
    counts = task.get(key)
    values = [value for name, value in counts.items() if name != "base"] if isinstance(counts, dict) else []
    return max((value for value in values if is_number(value)), default=0)


def loss_without_gain(verdicts: Sequence[Verdict]) -> Advice | None:
    """A held-out loss that got better while no task did."""
    better = [each for each in verdicts if each.get("task") == HELD_OUT and each.get("outcome") == "better"]
    tasks = [
        each
        for each in verdicts
        if each.get("task") not in (HELD_OUT, GENERAL_TEXT) and each.get("measure") not in LOSSES
    ]
    if not better or not tasks or any(each.get("outcome") == "better" for each in tasks):
        return None
    told = ", ".join(f"{each.get('task')} ({each.get('measure')}): {each.get('outcome')}" for each in tasks)
    rows = [each["rows_for_half"] for each in tasks if is_number(each.get("rows_for_half"))]
    more = f" {max(rows):,.0f} more questions would show half the difference that can be seen now." if rows else ""
    return Advice(
        "A better loss, and no better answers",
        f"The held-out {better[0].get('measure')} got better; {told}.",
        f"The rows may teach form without the skill that is asked for, or the questions are too few to tell.{more}",
        [Change("eval.tasks", "more questions"), Change("data.train", "rows like the questions")],
    )


def memory_ran_out(planned: int | None, used: int | None, rows_per_step: int | None) -> Advice | None:
    """A micro-batch that was halved during the run because memory ran out.

    Args:
        planned: rows of a forward pass at the start.
        used: rows of a forward pass at the end.
        rows_per_step: rows of an optimizer step on one device.
    """
    if planned is None or used is None or used >= planned:
        return None
    changes = [Change("training.per_device_train_batch_size", used)]
    if rows_per_step is not None:
        changes.append(Change("training.gradient_accumulation_steps", -(-rows_per_step // used)))
    return Advice(
        "Memory ran out during the run",
        f"A forward pass took {planned:,} rows at the start and {used:,} at the end: every halving repeats a step.",
        "Start with what fits; the rows of a step stay the same.",
        changes,
    )


def no_held_out_rows(num_eval: int | None, num_train: int | None) -> Advice | None:
    """A run that measured nothing on rows that it has not seen."""
    if num_eval != 0 or not num_train:
        return None
    return Advice(
        "Nothing was held out",
        f"All {num_train:,} rows were trained on, so overfitting cannot be seen.",
        "Keep some rows back.",
        [Change("data.eval_fraction", 0.05 if num_train >= 1000 else 0.1)],
    )
