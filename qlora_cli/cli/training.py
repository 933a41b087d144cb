"""`qlora train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qlora_cli import api, console
from qlora_cli.constants import GIB

if TYPE_CHECKING:
    from qlora_cli.train.result import TrainingResult


def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe: a YAML file.", show_default=False)],
    run_dir: Annotated[
        Path | None, typer.Option(help="Where the run is written.", show_default="runs/<name of the recipe>")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one key, e.g. training.max_steps=10."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest intact checkpoint.")] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Start over; the run that is there is deleted when the new one is started."),
    ] = False,
    stop_after: Annotated[
        int | None, typer.Option(min=1, metavar="STEPS", help="Stop after this many steps and save a checkpoint.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Train even if memory or disk space looks insufficient.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train the adapter that a recipe describes."""
    result = api.train(
        recipe,
        run_dir=run_dir,
        overrides=overrides or (),
        resume=resume,
        overwrite=overwrite,
        stop_after=stop_after,
        force=force,
    )
    if result.rank == 0:
        _show(result, as_json=as_json)


def _show(result: TrainingResult, *, as_json: bool) -> None:
    if as_json:
        console.data(result.as_dict())
        return
    losses = [
        f"{name} {value:.4f}"
        for name, value in (("loss", result.loss), ("eval loss", result.eval_loss))
        if value is not None
    ]
    steps = f"already finished ({result.num_steps} of {result.max_steps} steps)"
    if result.num_steps_now:
        new_steps = f"{result.num_steps_now} step{'s' * (result.num_steps_now != 1)} in {result.seconds:.0f} s"
        steps = f"{new_steps}, {result.num_steps} of {result.max_steps} are done"
    console.result(
        f"{steps}: {', '.join(losses)}, peak memory {result.peak_memory_bytes / GIB:.1f} GiB{_planned(result)}"
    )
    if result.early_stop is not None:
        console.result(str(result.early_stop))
    if result.is_finished:
        which = "" if result.best_step is None else f" (of step {result.best_step}, which had the lowest eval loss)"
        console.result(f"adapter: {result.run.adapter_path}{which}")
        has_measures = result.eval_loss is not None
        console.next_command("qlora", "eval" if has_measures else "chat", str(result.run.path))
    else:
        console.result(f"continue with: {result.run.resume_command}")


def _planned(result: TrainingResult) -> str:
    """The predicted GPU memory; empty on a CPU, where a process holds more than what is planned."""
    predicted, measured = result.memory["predicted_bytes"], result.memory["measured_bytes"]
    is_comparable = "allocated" in predicted and "allocated" in measured
    return f" ({predicted['allocated'] / GIB:.1f} GiB were planned)" if is_comparable else ""


def register(app: typer.Typer) -> None:
    """Add this file's commands to the app."""
    app.command()(train)
