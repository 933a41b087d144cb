"""Command lines that do not fit: one line with what is wrong and one with what to type, as for any other error."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from qlora_cli.cli.help import EXAMPLES, help_page
from qlora_cli.errors import ArgumentError

UsageError: type[Any] = typer.BadParameter.__mro__[1]
"""typer's own, which has a public name in some versions only."""

DEBUG = "--debug"

OTHER_NAMES = {
    "evaluate": "eval", "finetune": "train", "fine-tune": "train", "sft": "train", "inference": "generate",
    "predict": "generate", "list": "runs", "ls": "runs", "preprocess": "data", "new": "init",
}  # fmt: skip
"""Name of a command in other tools -> our command."""

RECIPE_SECTION = re.compile(r"^(?:model|extends)\s*:", re.MULTILINE)
MOST_BYTES = 1 << 20
"""Larger YAML files are taken for data."""


class Command(TyperCommand):
    """A command with this project's help page; `--debug` may come anywhere after it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer, without `--debug`, on which `main` acts."""
        with _as_argument_errors(ctx):
            return super().parse_args(ctx, without_debug(args, self.params))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page."""
        formatter.write(help_page(self, ctx))


class Group(TyperGroup):
    """Commands with this project's help page, and errors of the command line as the other errors."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer; the outermost group declares `--debug` itself."""
        return super().parse_args(ctx, args if ctx.parent is None else without_debug(args, self.params))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page."""
        formatter.write(help_page(self, ctx))

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """As typer.

        Raises:
            ArgumentError: for arguments that do not fit.
        """
        with _as_argument_errors():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        """As typer.

        Raises:
            ArgumentError: for arguments that do not fit.
        """
        with _as_argument_errors():
            return super().invoke(ctx)


def adopt(app: typer.Typer) -> None:
    """Give every command below `app` the classes of this file, and the name of its function where it has none."""
    app.info.cls = Group
    for command in app.registered_commands:
        command.cls = Command
        command.name = command.name or getattr(command.callback, "__name__", None)
    for group in app.registered_groups:
        group.cls = Group
        if group.typer_instance is not None:
            adopt(group.typer_instance)


def without_debug(args: list[str], parameters: list[Any]) -> list[str]:
    """The arguments without `--debug`, but for one that is the value of another option or follows `--`."""
    take_values = {name for each in parameters if not getattr(each, "is_flag", False) for name in each.opts}
    kept: list[str] = []
    for number, argument in enumerate(args):
        if argument == "--":
            return kept + args[number:]
        if argument != DEBUG or (kept and kept[-1] in take_values):
            kept.append(argument)
    return kept


@contextmanager
def _as_argument_errors(ctx: Any = None) -> Iterator[None]:
    try:
        yield
    except UsageError as fault:
        if type(fault).__name__ == "NoArgsIsHelpError":  # its message is the help page
            raise
        raise _argument_error(fault, ctx or fault.ctx) from fault


def _argument_error(fault: Any, ctx: Any) -> ArgumentError:
    path = ctx.command_path if ctx else "qlora"
    see = f"`{path} --help` shows what it takes"
    match type(fault).__name__:
        case "MissingParameter":
            return _missing(fault, path)
        case "NoSuchOption":
            names = {each.lstrip("-"): each for each in _options(ctx)}
            close = get_close_matches(fault.option_name.lstrip("-"), names, n=1)
            hint = f"did you mean {names[close[0]]}?" if close else see
            return ArgumentError(f"`{path}` has no option {fault.option_name}", hint=hint)
        case "BadParameter":
            name = fault.param.opts[0] if fault.param is not None else ""
            return ArgumentError(_with_value(fault), place=name, hint=see)
    message = fault.format_message()
    if unknown := re.match(r"No such command '(.*?)'", message):
        return _no_command(unknown[1], ctx)
    if extra := re.match(r"Got unexpected extra argument(?:s|\(s\))? \((.*)\)", message):
        words = extra[1]
        hint = f"override a key with `--set {words.split()[0]}`" if "=" in words else see
        return ArgumentError(f"`{path}` does not know what to do with '{words}'", hint=hint)
    return ArgumentError(_calm(message), hint=see)


def _with_value(fault: Any) -> str:
    """The fault of a value; pydantic, which some versions of typer check with, leaves the value out."""
    message = _calm(fault.message.removeprefix("Value error, ").partition(", unable to parse")[0])
    errors: list[dict[str, Any]] = getattr(fault.__cause__, "errors", list)()
    value = str(errors[0].get("input", "")) if errors else ""
    return message if not value or f"'{value}'" in message else f"{message}, not '{value}'"


def _options(ctx: Any) -> list[str]:
    return [] if ctx is None else [name for each in ctx.command.params for name in each.opts if name.startswith("-")]


def _calm(message: str) -> str:
    """A sentence as our own errors have it.

    >>> _calm("Option '--gpu' requires an argument.")
    "option '--gpu' requires an argument"
    """
    return (message[:1].lower() + message[1:]).rstrip(".")


def _no_command(name: str, ctx: Any) -> ArgumentError:
    close = [OTHER_NAMES[name]] if name in OTHER_NAMES else get_close_matches(name, ctx.command.commands)
    hint = f"`{ctx.command_path} --help` lists the commands"
    if Path(name).suffix in (".yaml", ".yml"):
        hint = f"`qlora train {name}` trains what it describes"
    elif close:
        hint = "did you mean " + " or ".join(f"`{ctx.command_path} {each}`" for each in close) + "?"
    return ArgumentError(f"there is no command '{name}'", hint=hint)


def _missing(fault: Any, path: str) -> ArgumentError:
    parameter = fault.param
    if parameter is not None and parameter.name == "recipe":
        return _no_recipe(path)
    name = "an argument" if parameter is None else parameter.opts[0]
    name = name if name.startswith("-") else name.upper()
    return ArgumentError(f"`{path}` needs {name}", hint=f"for example `{EXAMPLES[path][0]}`")


def _no_recipe(path: str) -> ArgumentError:
    """Error that names the recipes of the current directory in a command to type; nothing starts unasked."""
    found = [file.name for file in sorted(Path.cwd().iterdir()) if _is_recipe(file)]
    problem = f"`{path}` needs a recipe"
    if len(found) == 1:
        return ArgumentError(problem, hint=f"there is one in this folder: `{path} {found[0]}`")
    if found:
        return ArgumentError(problem, hint=f"name one of those in this folder: {', '.join(found)}")
    return ArgumentError(
        f"{problem}, and no .yaml file in this folder is one",
        hint="write one with `qlora init --data FILE`, or take one of those that `qlora recipes` lists",
    )


def _is_recipe(file: Path) -> bool:
    """Whether a file looks like a recipe: YAML with a section `model`, or one that extends another."""
    if file.suffix not in (".yaml", ".yml") or not file.is_file() or file.stat().st_size > MOST_BYTES:
        return False
    try:
        return bool(RECIPE_SECTION.search(file.read_text("utf-8", errors="replace")))
    except OSError:
        return False
