"""`qlora push`: to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qlora_cli import api_reports, console
from qlora_cli.cli.options import AsJson

Pushable = Annotated[Path, typer.Argument(help="Run directory, PEFT adapter folder or model folder.")]
Repo = Annotated[str, typer.Argument(help="OWNER/NAME on the Hub; without OWNER your own.")]
Private = Annotated[bool, typer.Option("--private", help="Make the repository a private one.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the files and the card; ask nobody.")]
Branch = Annotated[
    str | None, typer.Option("--revision", metavar="BRANCH", help="Branch to push to.", show_default="main")
]
ReplaceCard = Annotated[
    bool, typer.Option("--replace-card", help="Replace a README.md of the repository that somebody has written.")
]
OfRun = Annotated[
    Path | None,
    typer.Option(
        "--of-run", metavar="RUN", help="Run that the folder was made from, for its card.", show_default="none"
    ),
]
HubBase = Annotated[
    str | None,
    typer.Option(
        "--base-model", help="Hub id of a base that was trained on from a folder.", show_default="the saved one"
    ),
]


def push(
    run: Pushable,
    repo: Repo,
    private: Private = False,
    dry_run: DryRun = False,
    revision: Branch = None,
    replace_card: ReplaceCard = False,
    of_run: OfRun = None,
    base_model: HubBase = None,
    as_json: AsJson = False,
) -> None:
    """Upload an adapter or a model to the Hub, with a card made of what was recorded and measured."""
    pushed = api_reports.push(
        run,
        repo,
        private=private,
        dry_run=dry_run,
        revision=revision,
        replace_card=replace_card,
        of_run=of_run,
        base_model=base_model,
    )
    if as_json:
        console.data(pushed.as_dict())
        return
    console.table(("file", "size"), [(file.name, console.size_in_words(file.num_bytes)) for file in pushed.files])
    if pushed.left_here:
        console.note(f"stays here: {', '.join(pushed.left_here)}")
    done = pushed.uploaded
    if done is None:
        console.result("")
        console.piece(pushed.card)
        console.note(f"nothing was sent: {console.size_in_words(pushed.num_bytes)} would go to {pushed.repo}")
        return
    if done.kept:
        console.note(f"not touched there: {', '.join(done.kept)}")
    console.result(f"pushed {console.size_in_words(pushed.num_bytes)} to {done.url} (commit {done.commit[:12]})")


def register(app: typer.Typer) -> None:
    """Add this file's command to the app."""
    app.command()(push)
