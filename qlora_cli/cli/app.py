"""The `qlora` command: its commands, and the one frame that turns errors into lines and exit codes."""

from __future__ import annotations

import sys
from contextlib import suppress
from copy import copy
from typing import Annotated

import typer

from qlora_cli import compat, console, environment
from qlora_cli.cli import (
    chat,
    data,
    deployment,
    engines,
    evaluation,
    inspection,
    plan,
    pushing,
    recipes,
    reporting,
    serving,
    training,
)
from qlora_cli.cli.usage import adopt
from qlora_cli.errors import QloraError
from qlora_cli.interruption import Interruption, interruptible, postponed

app = typer.Typer(
    name="qlora",
    help="Fine-tune a language model on one GPU with QLoRA, and prove at every step that it is right.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        from importlib.metadata import version  # 20 ms that no other command needs

        from qlora_cli.run.manifest import DISTRIBUTION

        console.result(f"qlora {version(DISTRIBUTION)}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Fine-tune a language model on one GPU with QLoRA, and prove at every step that it is right."""
    # `main` acts on --debug, since it outlives the command.


for _group in (
    recipes,
    data,
    plan,
    training,
    evaluation,
    reporting,
    deployment,
    chat,
    serving,
    pushing,
    inspection,
    engines,
):
    _group.register(app)
adopt(app)


def _with_what_is_asked(arguments: list[str]) -> typer.Typer:
    """The app with the command or group that the first argument names; typer builds all it has, in 0.1 s."""
    asked = copy(app)
    first = arguments[0] if arguments else ""
    asked.registered_commands = [each for each in app.registered_commands if each.name == first]
    asked.registered_groups = [each for each in app.registered_groups if each.name == first]
    return asked if asked.registered_commands or asked.registered_groups else app


def main() -> None:
    """Run the command line and exit with the code that `errors.py` gives the failure."""
    try:
        with interruptible():
            environment.let_idle_threads_sleep()
            environment.skip_pydantic_plugins()
            compat.keep_imports_quiet()
            console.keep_streams_clean()
            with console.flushed():
                _with_what_is_asked(sys.argv[1:])(prog_name="qlora")
    except Interruption as stop:
        console.note(stop.farewell)
        sys.exit(stop.exit_code)
    except Exception as fault:
        from qlora_cli import upstream
        from qlora_cli.run.disk_errors import disk_error

        error = disk_error(fault) or upstream.behind(fault) or fault
        if not isinstance(error, QloraError) or "--debug" in sys.argv:
            raise
        with suppress(OSError), postponed():  # stderr may be what cannot be written
            console.show_error(error)
        sys.exit(error.exit_code)
