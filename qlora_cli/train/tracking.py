"""Experiment trackers: refuse one that is not installed, give each the run's name and place."""

from __future__ import annotations

import os
from importlib.util import find_spec

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
