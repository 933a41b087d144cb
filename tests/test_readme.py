"""Every command line that README.md, docs/ and the containers' files print is one that the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

import qlora_cli
from qlora_cli.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.c*[!e]"))
GROUP = typer.main.get_command(app)

PROGRAM = re.compile(
    r"^(?:!|\$ )?(?:\S*/)?qlora |^docker run .*? qlora:\w+ |^torchrun .*? -m qlora_cli |^accelerate .*? -m qlora_cli "
)
"""What stands before the arguments: the program, a notebook's exclamation mark, a container or a launcher."""

PLACEHOLDER = re.compile(r"\[([A-Z]+)\]")
"""`[RUN]` in the table of commands."""


def command_lines(text: str) -> list[tuple[str, bool]]:
    """The arguments of every command line, and whether it stands in a block and so is whole."""
    blocks = re.findall(r"^(?:    |#   )(.*)$", text, flags=re.MULTILINE)
    spans = re.findall(r"`([^`\n]+)`", text)
    found = [(line, True) for line in blocks] + [(span, "docker run" in span) for span in spans]
    return [(PROGRAM.sub("", line), is_whole) for line, is_whole in found if PROGRAM.search(line)]


def refusal(line: str, *, is_whole: bool) -> str:
    """Why the command line does not take the arguments; empty where it does."""
    words = shlex.split(PLACEHOLDER.sub(r"\1", line), comments=True)
    group, name = GROUP, "qlora"
    context = group.context_class(group, info_name=name)
    if words and words[0].startswith("-") and words != ["--help"]:
        words = words[1:]  # `qlora --debug COMMAND`
    if words in ([], ["--help"], ["--version"]) or words[0] == "COMMAND":
        return ""
    while hasattr(group, "commands"):
        name, *words = words
        if name not in group.commands:
            return f"there is no command {name}"
        group = group.commands[name]
        parent, context = context, group.context_class(group, info_name=name, parent=context)
        if not words and hasattr(group, "commands"):
            return ""
    if "--help" in words:
        return ""
    try:
        group.make_context(name, words, parent=parent)
    except Exception as error:  # noqa: BLE001 - typer has no public name for usage errors
        if type(error.__cause__).__name__ == "MissingParameter" and not is_whole:
            return ""
        return str(error) or type(error).__name__
    return ""


@pytest.mark.parametrize("page", [*PAGES, *DOCKERFILES], ids=lambda page: page.name)
def test_the_command_line_takes_every_line_that_is_printed(page):
    lines = command_lines(page.read_text("utf-8"))
    assert [(line, why) for line, is_whole in lines if (why := refusal(line, is_whole=is_whole))] == []


def test_the_lines_of_the_readme_are_found():
    lines = [line for line, is_whole in command_lines((ROOT / "README.md").read_text("utf-8")) if is_whole]
    assert {line.split()[0] for line in lines} >= {"doctor", "init", "validate", "plan", "train", "eval", "export"}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("trian recipe.yaml", "no command trian"),
        ("train recipe.yaml --resum", "--resum"),
        ("export runs/a", "out"),
        ("merge --dtype int8", "int8"),
        ("generate --prompt hello --top-p 2", "less than"),
        ("data shew recipe.yaml", "no command shew"),
    ],
)
def test_a_line_that_is_wrong_is_seen(line, why):
    assert why in refusal(line, is_whole=True)


def test_the_names_that_the_readme_imports_are_there():
    readme = (ROOT / "README.md").read_text("utf-8")
    [names] = re.findall(r"from qlora_cli import (.*)", readme)
    assert {*names.split(", ")} <= {*qlora_cli.__all__}


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_a_container_gets_what_the_package_is_built_from(dockerfile):
    kept = set(re.findall(r"^!(\S+)$", (ROOT / f"{dockerfile}.dockerignore").read_text("utf-8"), flags=re.MULTILINE))
    built_from = {"pyproject.toml", "README.md", "LICENSE", "qlora_cli", "configs", "recipes", "constraints.txt"}
    assert kept == built_from
    assert all((ROOT / name).exists() for name in kept)


def test_there_is_a_container_for_gpus_and_one_without():
    assert [path.name for path in DOCKERFILES] == ["Dockerfile.cpu", "Dockerfile.cuda"]
