"""Trackers get the metrics, and one that is not installed is refused before anything is loaded."""

from __future__ import annotations

import os

import pytest

from qlora_cli.errors import RecipeError
from qlora_cli.recipe.schema import TrackingSection
from qlora_cli.run.directory import RunDirectory
from qlora_cli.train import tracking
from qlora_cli.train.session import TrainOptions, train_recipe
from qlora_cli.train.tracking import prepare_trackers


def test_tensorboard_events_lie_in_the_run_directory(small_recipe, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    run = RunDirectory(tmp_path / "run")
    train_recipe(small_recipe(tracking={"report_to": ["tensorboard"]}, training={"max_steps": 3}), run, TrainOptions())
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]


def test_a_tracker_that_is_not_installed_is_refused_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="not installed") as caught:
        prepare_trackers(TrackingSection(report_to=("wandb",)), RunDirectory(tmp_path))
    assert "pip install wandb" in caught.value.problems[0].hint


def test_the_project_reaches_the_trackers(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: object())
    for variable in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.setenv(variable, "before")
    prepare_trackers(TrackingSection(report_to=("wandb", "mlflow"), project="sums"), RunDirectory(tmp_path))
    assert os.environ["WANDB_PROJECT"] == os.environ["MLFLOW_EXPERIMENT_NAME"] == "sums"
