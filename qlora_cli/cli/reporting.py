"""`qlora report` and `qlora compare`: runs on a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qlora_cli import api_reports, console
from qlora_cli.cli.options import AsJson

RunsToCompare = Annotated[list[Path], typer.Argument(help="Two or more run directories.", show_default=False)]
ReportedRun = Annotated[Path | None, typer.Argument(help="Run directory.", show_default="the latest run")]
Page = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="The page.", show_default="<run>/report.html")]


def report(
    run: ReportedRun = None,
    out: Page = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Write it again while the run grows; the page then loads itself again.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show a run on one page: verdict, curves, samples, and what to change."""
    written = api_reports.report(run, out=out, watch=watch)
    if as_json:
        console.data(written.as_dict())
        return
    console.result(f"wrote {written.path} ({console.size_in_words(written.num_bytes)})")
    for advice in written.advice:
        console.result(f"{advice.title.lower()}: {advice.figures}")
        console.result(f"  try {', '.join(map(str, advice.changes))}")


def compare(
    runs: RunsToCompare,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The page.", show_default="compare.html beside the first run"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Lay runs beside each other: curves, what differs, and paired verdicts."""
    from qlora_cli.report.compare import COLUMNS

    found = api_reports.compare(runs, out=out)
    if as_json:
        console.data(found.as_dict())
        return
    console.table(COLUMNS, [line.cells() for line in found.runs])
    if found.differences:
        console.result("")
        rows = [each.cells() for each in found.differences]
        console.table(("what differs", *(line.run for line in found.runs)), rows)
    for each in found.verdicts:
        console.result("")
        console.result(f"{each.run} against {each.against}, {each.task}: {each.verdict.sentence}")
    console.result("")
    console.result(f"wrote {found.page}")


def register(app: typer.Typer) -> None:
    """Add this file's commands to the app."""
    app.command()(report)
    app.command()(compare)
