"""The table of runs: what each is, how far it got, what it reached."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qlora_cli.errors import IdentityError
from qlora_cli.run.directory import RUNS_FOLDER, RunDirectory, list_runs
from qlora_cli.run.manifest import read_manifest
from qlora_cli.run.metrics import read_metrics


@dataclass(frozen=True)
class RunOverview:
    """One line of `qlora runs`."""

    run: str
    status: str
    base_model: str
    num_steps: int
    loss: float | None
    eval_loss: float | None
    started_at: str

    def cells(self) -> tuple[str, ...]:
        """The line's cells as a person reads them."""
        losses = ["" if value is None else f"{value:.4f}" for value in (self.loss, self.eval_loss)]
        base = Path(self.base_model).name if Path(self.base_model).is_absolute() else self.base_model
        return (self.run, self.status, base, str(self.num_steps), *losses, self.started_at[:16].replace("T", " "))

    def as_dict(self) -> dict[str, Any]:
        """The line as JSON holds it."""
        return asdict(self)


def overview(folder: Path = RUNS_FOLDER) -> list[RunOverview]:
    """One line for each run below `folder`, the latest first."""
    return [_describe(run) for run in list_runs(folder)]


def _describe(run: RunDirectory) -> RunOverview:
    metrics = read_metrics(run.metrics_path)
    losses = [line["loss"] for line in metrics if "loss" in line]
    eval_losses = [line["eval_loss"] for line in metrics if "eval_loss" in line]
    try:
        manifest = read_manifest(run)
    except IdentityError:
        manifest = {}  # stopped before the manifest was written
    return RunOverview(
        run=str(run.path),
        status=manifest.get("status", "not started"),
        base_model=manifest.get("base", {}).get("base_model", ""),
        num_steps=metrics[-1]["step"] if metrics else 0,
        loss=losses[-1] if losses else None,
        eval_loss=eval_losses[-1] if eval_losses else None,
        started_at=manifest.get("started_at", ""),
    )
