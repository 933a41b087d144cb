"""Experiment trackers: refuse one that is not installed, give each the run's name and place."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import wraps
from importlib.util import find_spec
from typing import Any

from transformers import TrainerCallback

from qlora_cli.errors import RecipeError
from qlora_cli.plan.machine.extras import EXTRAS
from qlora_cli.recipe.schema import TrackingSection
from qlora_cli.run.directory import RunDirectory

PROJECT_VARIABLES = {"wandb": "WANDB_PROJECT", "mlflow": "MLFLOW_EXPERIMENT_NAME"}


def prepare_trackers(tracking: TrackingSection, run: RunDirectory) -> None:
    """Check that every tracker can be imported and set where it writes; it does so through environment variables.

    Trackio takes its project from the trainer's arguments.

    Raises:
        RecipeError: if a tracker is not installed.
    """
    packages = {extra.module: extra.package for extra in EXTRAS}
    for tracker in tracking.report_to:
        if find_spec(tracker) is None:
            raise RecipeError(
                f"tracking.report_to names {tracker}, which is not installed", hint=f"pip install {packages[tracker]}"
            )
        if tracking.project is not None and tracker in PROJECT_VARIABLES:
            os.environ[PROJECT_VARIABLES[tracker]] = tracking.project
    if "tensorboard" in tracking.report_to:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.path / "tensorboard")
    if "mlflow" in tracking.report_to:
        _let_mlflow_write_files()


def _let_mlflow_write_files() -> None:
    """Without a database driver MLflow writes into `mlruns`, as before version 3; what the user has set stays.

    mlflow-skinny comes without one and yet takes an SQLite file by default, which then fails; files need a permission.
    """
    if "MLFLOW_TRACKING_URI" not in os.environ and find_spec("sqlalchemy") is None:
        os.environ["MLFLOW_TRACKING_URI"] = "file:./mlruns"
    if os.environ.get("MLFLOW_TRACKING_URI", "").startswith("file:"):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")


def refuse_in_words(callbacks: Iterable[TrainerCallback]) -> None:
    """Have a tracker that cannot start say so in one line: a key that is missing, a server that does not answer."""
    for callback in callbacks:
        if hasattr(callback, "setup"):
            callback.setup = _in_words(callback.setup, type(callback).__name__.removesuffix("Callback").lower())


def _in_words(setup: Callable[..., Any], tracker: str) -> Callable[..., Any]:
    @wraps(setup)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return setup(*args, **kwargs)
        except Exception as fault:
            said = str(fault).strip().partition("\n")[0] or type(fault).__name__
            raise RecipeError(
                f"tracking.report_to: {tracker} does not start: {said}",
                hint="set it up as its documentation says, or leave it out: --set tracking.report_to=[]",
            ) from fault

    return guarded
