"""`qlora runs` and `qlora doctor`: what is there and what works."""

from __future__ import annotations

from typing import Annotated

import typer

from qlora_cli import console
from qlora_cli.choices import RunOrder
from qlora_cli.cli.options import AsJson
from qlora_cli.progress import loading_libraries, progress


def runs(
    sort: Annotated[
        RunOrder, typer.Option("--sort", metavar="ORDER", help="latest, name, eval, loss, steps or time.")
    ] = "latest",
    as_json: AsJson = False,
) -> None:
    """List the runs in ./runs, the latest first."""
    from qlora_cli.run.overview import COLUMNS, overview

    rows = overview(order=sort)
    if as_json:
        console.data([row.as_dict() for row in rows])
    elif not rows:
        console.note("there are no runs yet; start one with `qlora train RECIPE`")
    else:
        console.table(COLUMNS, [row.cells() for row in rows])


def doctor(as_json: AsJson = False) -> None:
    """Show versions and devices, and try on this machine what training needs."""
    with loading_libraries():
        from qlora_cli.plan.machine.doctor import examine

    with console.library_noise_to(None), progress("trying what training needs"):
        findings = examine()
    if as_json:
        console.data([finding.as_dict() for finding in findings])
    else:
        console.table(("", "what", "found"), [finding.cells() for finding in findings])
    if not all(finding.is_fine for finding in findings):
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add this file's commands to the app."""
    app.command()(runs)
    app.command()(doctor)
