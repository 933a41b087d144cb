"""State in a checkpoint beside weights and optimizer: enough to make a stopped run equal an undisturbed one."""

from __future__ import annotations

import json

import pytest

from qlora_cli.run.directory import RunDirectory
from qlora_cli.train.checkpoint.training_state import PROCESSES_NAME, load_process
from qlora_cli.train.session import TrainOptions, train_recipe
from tests.reliability.harness.rank_runs import metrics


@pytest.mark.parametrize("logging_steps", [1, 3])
def test_the_lines_of_a_stopped_and_resumed_run_are_those_of_an_undisturbed_one(small_recipe, tmp_path, logging_steps):
    recipe = small_recipe(training={"logging_steps": logging_steps})
    stopped, straight = RunDirectory(tmp_path / "stopped"), RunDirectory(tmp_path / "straight")
    train_recipe(recipe, stopped, TrainOptions(stop_after=4))
    train_recipe(recipe, stopped, TrainOptions(resume=True))
    train_recipe(recipe, straight, TrainOptions())
    assert metrics(stopped.path) == metrics(straight.path)
    logged = [line["step"] for line in metrics(straight.path) if "eval_loss" not in line]
    assert logged == list(range(logging_steps, 9, logging_steps))


def test_a_checkpoint_from_before_lines_could_span_a_stop_is_read(small_recipe, tmp_path):
    run = RunDirectory(tmp_path / "run")
    train_recipe(small_recipe(), run, TrainOptions(stop_after=2))
    folder = run.checkpoints_path / "step-000002"
    (folder / PROCESSES_NAME).write_text(json.dumps({"rows_at_once": [1]}))
    process = load_process(folder, 0, 1)
    assert (process.rows_at_once, process.unlogged) == (1, {})
