"""Help pages: an example for each command, which works, and a layout for each screen."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from qlora_cli import console
from qlora_cli.cli.app import app
from qlora_cli.cli.help import EXAMPLES

ROOT = get_command(app)


def below(command: Any, path: str) -> Iterator[str]:
    yield path
    for name, each in getattr(command, "commands", {}).items():
        yield from below(each, f"{path} {name}")


PATHS = list(below(ROOT, "qlora"))


def test_every_command_has_an_example():
    assert set(EXAMPLES) == set(PATHS)


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_an_example_is_a_command_line_that_fits(line):
    name, *arguments = shlex.split(line.partition(" > ")[0])
    context = ROOT.make_context(name, arguments)
    while hasattr(context.command, "commands"):
        name, command, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)  # raises where it does not fit


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("path", PATHS)
def test_a_page_fits_the_screen_and_cuts_nothing(call, monkeypatch, path, width):
    monkeypatch.setattr(console.out, "_width", width)
    ran = call(*path.split()[1:], "--help")
    page, _, examples = ran.out.partition("\nExamples\n")
    assert ran.code == 0
    assert max(map(len, page.splitlines())) <= width
    assert "…" not in page
    assert tuple(line.strip() for line in examples.splitlines()) == EXAMPLES[path]  # none is broken over two lines


def test_a_flag_has_no_value(call):
    page = call("train", "--help").out
    assert "  --resume            Continue from" in page
    assert "<bool>" not in page
    assert "--debug " in page
