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


def test_a_tracker_that_does_not_start_is_refused_in_one_line():
    class TrackerCallback:
        def setup(self, *args):
            raise ConnectionError("no answer from 127.0.0.1:5000\nand more")

    callback = TrackerCallback()
    tracking.refuse_in_words([callback])
    with pytest.raises(RecipeError, match=r"tracker does not start: no answer from 127\.0\.0\.1:5000\n"):
        callback.setup(1, 2, 3)


@pytest.mark.parametrize(
    ("driver", "uri", "expected"),
    [(None, None, "file:./mlruns"), (object(), None, None), (None, "http://here:5000", "http://here:5000")],
)
def test_mlflow_writes_where_it_can(tmp_path, monkeypatch, driver, uri, expected):
    monkeypatch.setattr(tracking, "find_spec", lambda name: driver if name == "sqlalchemy" else object())
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(variable, "")  # put back afterwards
        monkeypatch.delenv(variable)
    if uri is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    prepare_trackers(TrackingSection(report_to=("mlflow",)), RunDirectory(tmp_path))
    assert os.environ.get("MLFLOW_TRACKING_URI") == expected
    assert ("MLFLOW_ALLOW_FILE_STORE" in os.environ) is (expected == "file:./mlruns")
