"""A loss that leaves its level for good is reported once; ordinary runs are not."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.metrics import append_metrics, read_metrics
from qlora_cli.train.callbacks.loss_divergence import PATIENCE, WINDOW, DivergenceDetector, LossDivergenceCallback
from qlora_cli.train.session import TrainOptions, train_recipe

NUM_RUNS = 150
NUM_STEPS = 1000


def falling(chance: random.Random, step: int) -> float:
    """Fast at first, then slowly."""
    return 1.2 + 1.5 * math.exp(-step / 30) + chance.gauss(0, 0.15)


def by_epochs(chance: random.Random, step: int) -> float:
    """A small data set learned by heart: a step down at each epoch, noise in proportion."""
    return 2.0 * 0.4 ** (step // 100) * math.exp(chance.gauss(0, 0.3))


def heavy_tailed(chance: random.Random, step: int) -> float:
    """Rows of very different lengths: one in ten losses is far from the others."""
    return 1.0 + chance.paretovariate(2.5) * (3 if chance.random() < 0.1 else 0.3)


def flat(chance: random.Random, step: int) -> float:
    """Nothing left to learn, hardly any noise, and a slow drift upwards."""
    return 0.5 + 1e-5 * step + chance.gauss(0, 1e-3)


def spiky(chance: random.Random, step: int) -> float:
    """Spikes that are over within ten steps."""
    return falling(chance, step) + (5.0 if step % 200 > 190 else 0.0)


@pytest.mark.parametrize("curve", [falling, by_epochs, heavy_tailed, flat, spiky], ids=lambda curve: curve.__name__)
def test_ordinary_curves_give_no_alarm(curve: Callable[[random.Random, int], float]):
    for seed in range(NUM_RUNS):
        chance, level = random.Random(seed), DivergenceDetector()
        assert not any(level.has_diverged(curve(chance, step)) for step in range(NUM_STEPS)), seed


@pytest.mark.parametrize("curve", [falling, by_epochs, flat], ids=lambda curve: curve.__name__)
def test_a_loss_that_doubles_and_stays_is_told_once_and_soon(curve: Callable[[random.Random, int], float]):
    for seed in range(NUM_RUNS):
        chance, level = random.Random(seed), DivergenceDetector()
        rises = [0.0] * 300 + [2.0] * 300
        told = [step for step, rise in enumerate(rises) if level.has_diverged(curve(chance, step) + rise)]
        assert len(told) == 1
        assert 300 + PATIENCE <= told[0] + 1 <= 300 + 2 * PATIENCE


def test_real_runs_give_no_alarm(small_recipe, tmp_path, capsys):
    recipe = small_recipe(
        data={"packing": False, "eval_fraction": None},
        training={"max_steps": 2 * WINDOW, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1},
    )
    run = RunDirectory(tmp_path / "run")
    train_recipe(recipe, run, TrainOptions())
    assert len(read_metrics(run.metrics_path)) == 2 * WINDOW
    assert "the loss is above" not in capsys.readouterr().err


def test_a_resumed_run_remembers_the_level_of_the_losses_before(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    for step in range(1, 81):
        append_metrics(path, {"step": step, "loss": 1.0 + 0.01 * (step % 3)})
    watch, state = LossDivergenceCallback(path), TrainerState(global_step=80)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, logging_steps=1)
    watch.on_train_begin(arguments, state, TrainerControl())
    for _ in range(2 * PATIENCE):
        state.global_step += 1
        watch.on_log(arguments, state, TrainerControl(), {"loss": 1.5, "learning_rate": 1e-4})
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: since step 81 the loss is above 1.1")
    assert "before, it was about 1.01" in line
