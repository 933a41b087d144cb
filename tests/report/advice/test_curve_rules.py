"""Advice comes where the curve shows its cause, with the figure and the key to change, and nowhere else."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from qlora_cli.report.advice.advice import Change
from qlora_cli.report.advice.curve_rules import (
    data_too_small,
    no_convergence,
    overfitting,
    rate_too_high,
    rate_too_low,
    spikes,
    too_few_steps,
)
from qlora_cli.report.curve import Curve, curve_of

REAL = json.loads((Path(__file__).parents[1] / "data" / "real_curves.json").read_text("utf-8"))
"""Runs of a 5.8M Llama on GSM8K, NF4: see `about` in the file."""


def curve(values, every=1):
    return Curve(tuple(every * (number + 1) for number in range(len(values))), tuple(values))


def falling(num=200, start=2.0, end=1.0, noise=0.03, rate=5.0):
    chance = random.Random(1)
    return curve([end + (start - end) * math.exp(-rate * n / num) + chance.gauss(0, noise) for n in range(num)])


def flat(num=200, noise=0.05):
    return falling(num, 2.0, 2.0, noise)


NONE = Curve()


def test_a_run_that_learns_gets_no_advice():
    losses, evals = falling(), curve([1.6, 1.3, 1.15, 1.11, 1.1], 40)
    assert rate_too_high(losses, NONE, 2e-4, 0.03) is None
    assert no_convergence(losses, evals, 2e-4) is None
    assert rate_too_low(losses, 2e-5) is None
    assert overfitting(losses, evals, keeps_best=False, patience=None) is None
    assert data_too_small(losses, evals, 3.0, 1000) is None
    assert too_few_steps(losses, evals, 200, 2.0) is None


def test_a_loss_that_rises_is_a_rate_that_is_too_high():
    found = rate_too_high(falling(start=2, end=6), NONE, 0.02, 0.0)
    assert "rose from 2" in found.figures
    assert "at a peak rate of 0.02" in found.figures
    assert found.changes == [Change("training.learning_rate", 0.002), Change("training.warmup_ratio", 0.03)]


def test_spikes_are_a_rate_that_is_too_high():
    values = list(falling().values)
    for place in (60, 100, 140):
        values[place] += 2
    assert spikes(curve(values)) == [61, 101, 141]
    found = rate_too_high(curve(values), NONE, 3e-4, 0.03)
    assert "3 spikes of the loss, the first at step 61" in found.figures
    assert found.changes == [Change("training.learning_rate", 1e-4)]


def test_two_spikes_are_rows_not_a_rate():
    values = list(falling().values)
    values[60] += 2
    values[100] += 2
    assert rate_too_high(curve(values), NONE, 3e-4, 0.03) is None


def test_losses_that_are_no_numbers_are_counted():
    losses = curve_of([*({"step": n, "loss": 2.0} for n in range(30)), {"step": 30, "loss": None}], "loss")
    assert "1 losses are not finite" in rate_too_high(losses, NONE, 1e-3, 0.03).figures


def test_noise_alone_is_no_spike():
    assert spikes(flat(2000)) == []


def test_a_flat_loss_has_not_converged():
    found = no_convergence(flat(), NONE, 1e-5)
    assert found.changes == [Change("training.learning_rate", 2e-4)]
    assert no_convergence(flat(), NONE, 1e-3).changes == [Change("training.learning_rate", 3e-3)]


def test_an_eval_loss_that_fell_outweighs_the_noise_of_the_steps():
    assert no_convergence(flat(), curve([1.72, 1.65, 1.63], 50), 1e-3) is None


def test_a_small_steady_fall_at_a_small_rate_is_a_rate_that_is_too_low():
    losses = falling(400, 2.0, 1.96, 0.01, rate=1.0)
    found = rate_too_low(losses, 5e-6)
    assert "at a peak rate of 5e-6" in found.figures
    assert found.changes == [Change("training.learning_rate", 2e-4)]
    assert rate_too_low(losses, 2e-4) is None


def test_an_eval_loss_that_rises_while_training_falls_is_overfitting():
    evals = curve([1.6, 1.4, 1.45, 1.6, 1.8], 40)
    found = overfitting(falling(), evals, keeps_best=False, patience=None)
    assert "lowest at step 80 (1.400) and is 1.800 at step 200" in found.figures
    assert found.changes == [
        Change("training.load_best_model_at_end", True),
        Change("training.early_stopping_patience", 3),
    ]
    again = overfitting(falling(), evals, keeps_best=True, patience=3.0)
    assert again.changes[0] == Change("training.max_steps", 80)


def test_an_eval_loss_that_rises_with_the_training_loss_is_not_overfitting():
    evals = curve([1.4, 1.6, 1.8], 60)
    assert overfitting(falling(start=1, end=2), evals, keeps_best=False, patience=None) is None


def test_rows_that_are_known_by_heart_are_too_few():
    found = data_too_small(falling(end=0.2), curve([1.5, 1.6], 100), 12.0, 60)
    assert found.figures.startswith("60 training rows were seen 12.0 times each")
    assert data_too_small(falling(end=0.2), curve([1.5, 1.6], 100), 1.0, 60) is None


def test_a_loss_that_still_falls_at_the_end_had_too_few_steps():
    losses = falling(rate=0.8)
    found = too_few_steps(losses, curve([1.8, 1.6, 1.5], 66), 200, None)
    assert found.changes == [Change("training.max_steps", 400)]
    assert too_few_steps(losses, NONE, 200, 3.0).changes == [Change("training.num_train_epochs", 6.0)]
    assert too_few_steps(losses, curve([1.8, 1.5, 1.6], 66), 200, None) is None


@pytest.mark.parametrize("num", [0, 1, 2, 5])
def test_a_few_steps_say_nothing(num):
    losses = curve([9.0] * num)
    assert rate_too_high(losses, NONE, 0.5, 0.0) is None
    assert no_convergence(losses, NONE, 1e-6) is None
    assert too_few_steps(losses, NONE, num, 1.0) is None
    assert overfitting(losses, losses, keeps_best=False, patience=None) is None


def of_run(name):
    """The rules that speak about a real run, by their titles."""
    run = REAL[name]
    losses, evals, norms = (curve_of(run["lines"], key) for key in ("loss", "eval_loss", "grad_norm"))
    rate, epochs, rows = run["learning_rate"], run["lines"][-1]["epoch"], run["num_train"]
    found = [
        rate_too_high(losses, norms, rate, 0.05),
        overfitting(losses, evals, keeps_best=False, patience=None),
        data_too_small(losses, evals, epochs, rows),
        no_convergence(losses, evals, rate),
        rate_too_low(losses, rate),
        too_few_steps(losses, evals, run["lines"][-1]["step"], epochs),
    ]
    return [each.title for each in found if each]


@pytest.mark.parametrize(
    ("name", "titles"),
    [
        ("gsm8k", []),
        ("overfit", ["Overfitting", "Too little data"]),
        ("too-high", ["The learning rate is too high"]),
    ],
)
def test_real_runs_get_the_advice_that_their_recipes_call_for(name, titles):
    assert of_run(name) == titles
