"""What README.md and docs/ say is there: every key, command, option, make target, path and figure of the demo."""

from __future__ import annotations

import doctest
import html
import importlib.util
import re
import textwrap
import tomllib
from pathlib import Path

import pytest
import typer

from qlora_cli.cli.app import app
from qlora_cli.recipe.reader import load_recipe

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text("utf-8")


def commands_of(group, before=""):
    """Name -> command, those inside a noun as `data show`."""
    found = {}
    for name, command in group.commands.items():
        found |= commands_of(command, f"{before}{name} ") if hasattr(command, "commands") else {before + name: command}
    return found


COMMANDS = commands_of(typer.main.get_command(app))
NOUNS = {name.partition(" ")[0] for name in COMMANDS if " " in name}
OPTIONS = {
    option
    for command in COMMANDS.values()
    for parameter in command.params
    for option in (*parameter.opts, *parameter.secondary_opts)
}
GLOBAL_OPTIONS = {"--help", "--debug", "--version"}
IN_TREE = re.compile(
    r"(?<![\w/])(?:(?:qlora_cli|docs|tests|recipes|configs|benchmarks|\.ci)/[\w./-]*\w"
    r"|[a-z]+/\w+\.py|[\w-]+\.(?:toml|txt|md))\b"
)
MADE_BY_A_RUN = {"log.txt"}


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_of(text):
    """What stands in back-ticks or in blocks that are indented by four spaces."""
    blocks = re.findall(r"^    (.*)$", text, flags=re.MULTILINE)
    return blocks + re.findall(r"`([^`\n]+)`", text)


@pytest.mark.parametrize("name", ["record_demo", "write_recipe"])
def test_worked_examples_of_the_scripts_are_true(name):
    assert doctest.testmod(load_script(name)).failed == 0


def test_the_page_of_recipe_keys_is_made_from_the_schema():
    page = (ROOT / "docs" / "recipe.md").read_text("utf-8")
    assert page == load_script("write_recipe").reference(), "run `python docs/write_recipe.py`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_and_link_leads_somewhere(page):
    text = page.read_text("utf-8")
    links = {link.partition("#")[0] for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text)} - {""}
    assert [link for link in links if not (page.parent / link).exists()] == []
    named = {path for code in code_of(text) for path in IN_TREE.findall(code)} - MADE_BY_A_RUN
    folders = (ROOT, page.parent, ROOT / "qlora_cli")
    assert [path for path in named if not any((folder / path).exists() for folder in folders)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_exists(page):
    for code in code_of(page.read_text("utf-8")):
        for name, rest in re.findall(r"(?<![\w/-])qlora ([a-z]+)([^#|;&]*)", code):
            if name in NOUNS:
                verb, _, rest = rest.strip().partition(" ")
                name = f"{name} {verb}"
            assert name in COMMANDS, code
            known = {
                option for parameter in COMMANDS[name].params for option in (*parameter.opts, *parameter.secondary_opts)
            } | GLOBAL_OPTIONS
            assert set(re.findall(r"(?<!\S)--[a-z][a-z-]*", rest)) <= known, code
        if not re.search(r"\b(?:python|torchrun|accelerate|docker|pip)\b|--user", code):
            assert set(re.findall(r"(?<!\S)--[a-z][a-z-]*", code)) <= OPTIONS | GLOBAL_OPTIONS, code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_exists(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE))
    called = {target for code in code_of(page.read_text("utf-8")) for target in re.findall(r"\bmake ([a-z-]+)", code)}
    assert called <= targets


def test_the_recipe_that_is_shown_is_valid(tmp_path):
    [lines] = re.findall(r"^    extends:.*\n(?:^    .*\n)+", README, flags=re.MULTILINE)
    (tmp_path / "shown.yaml").write_text(textwrap.dedent(lines), encoding="utf-8")
    assert load_recipe(tmp_path / "shown.yaml").model.base_model == "Qwen/Qwen3-8B"


def test_the_table_of_commands_has_each_command_once():
    rows = re.findall(r"^\| `qlora ([a-z]+(?: [a-z]+)?)", README, flags=re.MULTILINE)
    assert sorted(rows) == sorted(COMMANDS)


def test_every_test_that_is_named_as_proof_exists():
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", README):
        assert f"def {name}(" in (ROOT / path).read_text("utf-8"), name


def test_figures_quoted_from_the_demo_stand_in_its_recording():
    drawing = re.sub(r"<[^>]+>", "", html.unescape((ROOT / "docs" / "demo.svg").read_text("utf-8"))).replace(
        "\xa0", " "
    )
    rows = [line for line in README.splitlines() if line.startswith("|") and "`make demo`" in line and "%" in line]
    figures = [figure for row in rows for figure in re.findall(r"\d[\d,.]*\d ?%?", row.rpartition("|")[0])]
    assert figures
    assert [figure for figure in figures if figure.replace(" ", "") not in drawing] == []


def test_the_demo_is_drawn_without_anything_from_the_network():
    drawing = (ROOT / "docs" / "demo.svg").read_text("utf-8")
    assert not re.search(r"url\(\s*[\"']?https?:|<script|<image", drawing)


def test_every_extra_that_is_named_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    named = {extra for page in PAGES for extra in re.findall(r"qlora\[(\w+)\]", page.read_text("utf-8"))}
    assert named <= set(extras)
