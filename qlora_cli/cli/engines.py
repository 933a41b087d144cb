"""`qlora env`: the engines that some formats and servers need, in environments of their own."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from qlora_cli import console
from qlora_cli.calling import check_choice
from qlora_cli.cli.options import AsJson
from qlora_cli.engine_environment import ENVIRONMENTS

COLUMNS = ("engine", "version", "where", "for")


def env(
    name: Annotated[
        str | None, typer.Argument(help=f"{', '.join(ENVIRONMENTS)}.", show_default="list what is there")
    ] = None,
    print_only: Annotated[
        bool, typer.Option("--print", help="Print the commands that make it, and do nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Make it again where it is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the engines that have an environment of their own, or make one."""
    from qlora_cli.deploy.engines.install import command_lines, installed, make_environment

    if name is None:
        engines = installed()
        if as_json:
            console.data([asdict(engine) for engine in engines])
        else:
            console.table(COLUMNS, [engine.cells() for engine in engines])
        return
    check_choice("name", name, tuple(ENVIRONMENTS))
    environment = ENVIRONMENTS[name]
    if print_only:
        for line in command_lines(environment):
            console.result(line)
        return
    console.note(f"{name} takes about {console.size_in_words(environment.num_bytes)} in {environment.folder}")
    made = make_environment(environment, force=force)
    if as_json:
        console.data(asdict(made))
    else:
        console.facts({"engine": f"{made.name} {made.version}", "python": made.python or "-", "for": made.purpose})


def register(app: typer.Typer) -> None:
    """Add this file's command to the app."""
    app.command()(env)
