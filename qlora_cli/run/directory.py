"""The run directory: the names of its parts, and which runs there are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from qlora_cli.errors import ArgumentError

RUNS_FOLDER = Path("runs")


@dataclass(frozen=True)
class RunDirectory:
    """One run's folder. After training it is the only interface between commands."""

    path: Path
    launcher: str = "qlora"
    """The command that starts the program that writes here, in as many processes as it needs."""

    def __fspath__(self) -> str:
        """The folder's path, so that a run can be named wherever its folder can."""
        return str(self.path)

    @property
    def recipe_path(self) -> Path:
        """The recipe as resolved, every default written out."""
        return self.path / "recipe.yaml"

    @property
    def manifest_path(self) -> Path:
        """Fingerprints, versions, hardware, seeds, status."""
        return self.path / "manifest.json"

    @property
    def metrics_path(self) -> Path:
        """One JSON object a line for each logged step and each evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def report_path(self) -> Path:
        """The page that shows the run."""
        return self.path / "report.html"

    @property
    def log_path(self) -> Path:
        """Messages of the libraries."""
        return self.path / "log.txt"

    @property
    def data_path(self) -> Path:
        """The data report, and the rows that were taken out."""
        return self.path / "data"

    @property
    def checkpoints_path(self) -> Path:
        """Whole checkpoints, `step-000050` and so on."""
        return self.path / "checkpoints"

    @property
    def adapter_path(self) -> Path:
        """The finished PEFT adapter."""
        return self.path / "adapter"

    @property
    def residual_path(self) -> Path:
        """The base that is left after PiSSA took out its principal part."""
        return self.path / "residual"

    @property
    def integers_path(self) -> Path:
        """The base in integers that the run's own rows decided."""
        return self.path / "integers"

    @property
    def eval_path(self) -> Path:
        """Results of `qlora eval`."""
        return self.path / "eval"

    @property
    def merged_path(self) -> Path:
        """The merged model."""
        return self.path / "merged"

    @property
    def earlier_path(self) -> Path:
        """The run that a new one is about to replace."""
        return self.path / ".earlier"

    @property
    def lock_path(self) -> Path:
        """Locked by the process that writes here, whose id it holds."""
        return self.path / ".lock"

    @property
    def resume_command(self) -> str:
        """The command that continues the run."""
        return f"{self.launcher} train {quote(str(self.recipe_path))} --run-dir {quote(str(self.path))} --resume"

    @property
    def is_started(self) -> bool:
        """Whether a run was ever begun here."""
        return self.recipe_path.is_file()

    @property
    def is_finished(self) -> bool:
        """Whether the run's adapter is there."""
        return (self.adapter_path / "adapter_config.json").is_file()


def run_around(folder: Path) -> RunDirectory | None:
    """The run that `folder` is, or whose adapter or checkpoint it is, whatever way leads there."""
    real = folder.resolve()
    for candidate, spelled in zip(
        (real, real.parent, real.parent.parent), (folder, folder.parent, folder.parent.parent), strict=True
    ):
        run = RunDirectory(candidate)
        is_part = real in (run.path, run.adapter_path) or real.parent == run.checkpoints_path
        if is_part and run.is_started:
            return RunDirectory(spelled) if spelled.resolve() == candidate else run
    return None


def list_runs(folder: Path = RUNS_FOLDER) -> list[RunDirectory]:
    """Every run below `folder`, the one whose metrics or recipe changed last first."""
    runs = [RunDirectory(path) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(filter(lambda run: run.is_started, runs), key=_last_change, reverse=True)


def _last_change(run: RunDirectory) -> float:
    paths = (run.metrics_path, run.recipe_path)
    return max(path.stat().st_mtime for path in paths if path.exists())


def run_hint(path: Path, otherwise: str = "`qlora runs` lists those that are there") -> str:
    """Hint for a path that is no run directory: the run in `runs/` of that name, where there is one."""
    meant = RUNS_FOLDER / path.name
    if path != meant and RunDirectory(meant).is_started:
        return f"did you mean {meant}?"
    return otherwise


def no_model_at(path: Path) -> ArgumentError:
    """The error for a path at which no tuned model is."""
    return ArgumentError(
        f"'{path}' is not a run directory, an adapter folder or a model folder",
        hint=run_hint(
            path, "`qlora runs` lists the runs; an adapter folder has adapter_config.json, a model folder config.json"
        ),
    )


def refuse_absent(*paths: str | os.PathLike[str] | None) -> None:
    """Refuse, before any library is loaded, models that cannot be there; None is the latest run.

    Raises:
        ArgumentError: if there is no folder at a path, or no run.
    """
    for path in paths:
        if path is None:
            latest_run()
        elif not Path(path).is_dir():
            raise no_model_at(Path(path))


def latest_run(folder: Path = RUNS_FOLDER) -> RunDirectory:
    """The run that changed last.

    Raises:
        ArgumentError: if there is none.
    """
    runs = list_runs(folder)
    if not runs:
        raise ArgumentError(
            f"there is no run in '{folder}'",
            hint="train one with `qlora train RECIPE`, or name a run directory",
        )
    return runs[0]
