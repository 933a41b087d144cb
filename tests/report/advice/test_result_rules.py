"""Advice on what was measured after a run comes with its figures, and not without them."""

from __future__ import annotations

from qlora_cli.report.advice.advice import Change
from qlora_cli.report.advice.result_rules import (
    forgetting,
    loss_without_gain,
    memory_ran_out,
    no_held_out_rows,
    poor_generation,
)


def verdict(task, measure, outcome, **more):
    return {"task": task, "measure": measure, "outcome": outcome, "difference": 0.1, "low": 0.05, "high": 0.2, **more}


def test_general_text_beyond_its_interval_is_forgetting():
    found = forgetting([verdict("general text", "loss", "worse")], 2e-4)
    assert "changed by +0.100 (95% interval +0.050 to +0.200)" in found.figures
    assert Change("training.learning_rate", 1e-4) in found.changes
    assert forgetting([verdict("general text", "loss", "no evidence")], 2e-4) is None
    assert forgetting([verdict("held-out", "loss", "worse")], 2e-4) is None


def test_answers_that_are_cut_need_room():
    task = {"task": "sums", "questions": 100, "cut": {"base": 90, "tuned": 20}, "empty": {}}
    found = poor_generation([task], 128)
    assert "20 of 100" in found.figures
    assert found.changes == [Change("eval.tasks.max_new_tokens", 256)]
    assert poor_generation([task | {"cut": {"base": 90, "tuned": 19}}], 128) is None


def test_empty_answers_are_counted():
    task = {"task": "sums", "questions": 100, "cut": {}, "empty": {"base": 50, "tuned": 5}}
    assert "5 of 100" in poor_generation([task], 128).figures
    assert poor_generation([task | {"empty": {"base": 50, "tuned": 4}}], 128) is None


def test_a_better_loss_without_better_answers():
    loss = verdict("held-out", "loss", "better")
    found = loss_without_gain([loss, verdict("sums", "number_match", "no evidence", rows_for_half=300)])
    assert "sums (number_match): no evidence" in found.figures
    assert "300 more questions" in found.remedy
    assert loss_without_gain([loss, verdict("sums", "number_match", "better")]) is None
    assert loss_without_gain([loss]) is None


def test_a_halved_micro_batch_names_one_that_fits_with_the_same_rows_a_step():
    found = memory_ran_out(8, 2, 32)
    assert found.changes == [
        Change("training.per_device_train_batch_size", 2),
        Change("training.gradient_accumulation_steps", 16),
    ]
    assert memory_ran_out(8, 8, 32) is None
    assert memory_ran_out(None, 8, 32) is None


def test_no_rows_held_out():
    assert no_held_out_rows(0, 100).changes == [Change("data.eval_fraction", 0.1)]
    assert no_held_out_rows(5, 100) is None
    assert no_held_out_rows(None, None) is None
