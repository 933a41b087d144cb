"""Which room may import what: docs/design.md in code. Imports are read with `ast`; nothing is imported."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.sources import ROOT, python_files, tree_of

PACKAGE = "qlora_cli"

FLOORS = {
    "errors": 0,
    "choices": 0,
    "constants": 0,
    "cache_folder": 0,
    "chat_server": 0,
    "hub": 0,
    "console": 0,
    "compat": 0,
    "environment": 0,
    "garbage": 0,
    "engine_environment": 0,
    "upstream": 0,
    "upstream_names": 0,
    "upstream_row": 0,
    "interruption": 0,
    "calling": 0,
    "progress": 0,
    "sparkline": 0,
    "visible_text": 0,
    "web_page": 0,
    "secrets": 0,
    "recipe": 1,
    "verdict": 1,
    "run": 2,
    "report": 3,
    "data": 3,
    "model": 3,
    "plan": 4,
    "train": 5,
    "evaluate": 6,
    "deploy": 6,
    "serve": 6,
    "api": 7,
    "api_reports": 7,
    "cli": 8,
    "__main__": 9,
}
"""A room imports from lower floors and from itself only."""

LIGHT_FLOOR = 2
"""Rooms up to here import no heavy library when they are imported."""

LAZY_ROOMS = {"api", "api_reports", "cli"}
"""Rooms that are imported for any command or function, and import others only in the body of the one that is called."""

HEAVY = {"torch", "transformers", "datasets", "peft", "trl", "bitsandbytes", "accelerate"}

HOMES = {
    "typer": ("cli",),
    "yaml": ("recipe",),
    "datasets": ("data",),
    "datasketch": ("data",),
    "bitsandbytes": ("model", "compat", "deploy", "plan"),
    "peft": ("model", "deploy"),
    "trl": ("train",),
    "matplotlib": ("report",),
    "plotly": ("report",),
    "fastapi": ("serve",),
    "starlette": ("serve",),
    "uvicorn": ("serve",),
}
"""Library -> the rooms that may import it. `bitsandbytes`: deploy unpacks weights, plan reports what works."""

TYPE_NAMES = {"PeftModel"}
"""Names that any room may import from a library: the types of values that are handed from room to room."""


@dataclass(frozen=True)
class Import:
    """One import statement's target, seen from `room`."""

    room: str
    module: str
    names: tuple[str, ...]
    line: int
    is_in_body: bool
    """Inside a function, or for type checkers only: not run when the file is imported."""


def imports_of(tree: ast.Module, room: str) -> list[Import]:
    """Every import in a file; relative ones keep their dots."""
    found: list[Import] = []

    def visit(node: ast.AST, is_in_body: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.extend(Import(room, name.name, (), child.lineno, is_in_body) for name in child.names)
            elif isinstance(child, ast.ImportFrom):
                module = "." * child.level + (child.module or "")
                names = tuple(name.name for name in child.names)
                found.append(Import(room, module, names, child.lineno, is_in_body))
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            is_for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            if not isinstance(child, ast.expr):  # no import is inside an expression
                visit(child, is_in_body or is_function or is_for_types)

    visit(tree, is_in_body=False)
    return found


def faults_of(found: Import) -> list[str]:
    """What is wrong with one import, in words."""
    if found.module.startswith("."):
        return [f"relative import of '{found.module}'"]
    library = found.module.partition(".")[0]
    floor = FLOORS[found.room]
    faults = []
    for target in rooms_named(found):
        if target not in FLOORS:
            faults.append(f"the room {target} has no floor")
            continue
        if FLOORS[target] > floor or (FLOORS[target] == floor and target != found.room and floor > 0):
            faults.append(f"{found.room} imports {target}, which is not below it")
        is_lazy = target in LAZY_ROOMS or FLOORS[target] <= 1
        if found.room in LAZY_ROOMS and not is_lazy and not found.is_in_body:
            faults.append(f"{found.room} imports {target} outside a function's body")
    is_type_only = bool(found.names) and set(found.names) <= TYPE_NAMES
    if library in HOMES and found.room not in HOMES[library] and not is_type_only:
        faults.append(f"{library} is imported in {found.room}; its home is {', '.join(HOMES[library])}")
    if library in HEAVY and (floor <= LIGHT_FLOOR or found.room in LAZY_ROOMS) and not found.is_in_body:
        faults.append(f"{library} is imported when {found.room} is")
    return faults


def rooms_named(found: Import) -> list[str]:
    """The rooms of this package that an import reaches."""
    package, _, rest = found.module.partition(".")
    if package != PACKAGE:
        return []
    return [rest.partition(".")[0]] if rest else [name for name in found.names if name in FLOORS]


def check_file(path: Path) -> list[str]:
    """The faults of one file, each with `file:line`."""
    inside = path.relative_to(ROOT / PACKAGE)
    return [
        f"{path.relative_to(ROOT)}:{found.line}: {fault}"
        for found in imports_of(tree_of(path), inside.parts[0].removesuffix(".py"))
        for fault in faults_of(found)
    ]


FILES = [path for path in python_files(PACKAGE) if path.name != "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_its_floor_allows(path):
    assert check_file(path) == []


def test_the_check_looked_at_the_whole_package():
    assert len(FILES) > 20
    assert {path.relative_to(ROOT / PACKAGE).parts[0] for path in FILES} >= {"errors.py", "recipe", "cli"}


def test_init_files_are_empty_but_for_the_one_that_names_the_functions_for_notebooks():
    own, *inits = sorted((ROOT / PACKAGE).rglob("__init__.py"))
    assert len(inits) >= 8
    assert [str(path) for path in inits if path.read_text("utf-8").strip()] == []
    found = imports_of(tree_of(own), "api")
    assert {one.module for one in found} == {
        "qlora_cli.api",
        "qlora_cli.api_reports",
        "qlora_cli.errors",
        "qlora_cli.evaluate",
        "qlora_cli.report",
        "qlora_cli.train",
    }


@pytest.mark.parametrize(
    ("room", "source", "fault"),
    [
        ("recipe", "from qlora_cli.run.directory import open_run", "recipe imports run"),
        ("recipe", "from qlora_cli import train", "recipe imports train"),
        ("data", "import qlora_cli.model.base", "data imports model"),
        ("evaluate", "from qlora_cli.serve import chat", "evaluate imports serve"),
        ("train", "def f():\n    from qlora_cli.cli.app import app", "train imports cli"),
        ("run", "import torch", "torch is imported when run is"),
        ("console", "from transformers import AutoModel", "transformers is imported when console is"),
        ("cli", "import datasets.arrow", "datasets is imported in cli"),
        ("cli", "from qlora_cli.train.trainer import train_run", "outside a function's body"),
        ("api", "from qlora_cli.deploy.merge import merge_run", "outside a function's body"),
        ("train", "from qlora_cli.api import evaluate", "train imports api"),
        ("train", "from peft import LoraConfig", "peft is imported in train"),
        ("data", "import yaml", "yaml is imported in data"),
        ("data", "from .formats import to_example", "relative import"),
    ],
)
def test_a_planted_violation_is_found(room, source, fault):
    (found,) = imports_of(ast.parse(source), room)
    assert any(fault in text for text in faults_of(found))


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("cli", "def train():\n    from qlora_cli.train.trainer import train_run"),
        ("run", "if TYPE_CHECKING:\n    import torch"),
        ("train", "from peft import PeftModel"),
        ("recipe", "from qlora_cli.recipe.schema import Recipe"),
        ("model", "import torch"),
    ],
)
def test_what_is_allowed_is_not_found(room, source):
    (found,) = imports_of(ast.parse(source), room)
    assert faults_of(found) == []


def modules_of(folders: tuple[str, ...]) -> dict[str, Path]:
    """Module name -> its file, of everything below some folders."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in python_files(*folders)
    }


def imported_modules(path: Path, modules: dict[str, Path]) -> set[str]:
    """Modules of `modules` that a file names, wherever in it, for type checkers too."""
    found = set()
    for one in imports_of(tree_of(path), room=""):
        names = {one.module, *(f"{one.module}.{name}" for name in one.names)}
        deepest = names & modules.keys()
        found |= {name for name in deepest if modules[name].name != "__init__.py" or len(deepest) == 1}
    return found


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, the first one found; empty where there is none.

    >>> circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}})
    ['b', 'c', 'b']
    """
    done: set[str] = set()

    def walk(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        for target in sorted(graph.get(module, ())):
            if found := walk(target, [*way, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := walk(module, []))), [])


def test_no_modules_import_each_other_in_a_circle():
    modules = modules_of(("qlora_cli", "tests", "benchmarks"))
    # The package's own __init__ hands out api.py's functions; whoever imports a module of it passes through there.
    graph = {name: imported_modules(path, modules) - {name, "qlora_cli"} for name, path in modules.items()}
    assert circle_in(graph) == []
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


@pytest.mark.parametrize("folder", ["train", "plan", "run"])
def test_a_folder_can_be_seen_at_a_glance(folder):
    folders = [ROOT / PACKAGE / folder, *(path for path in (ROOT / PACKAGE / folder).iterdir() if path.is_dir())]
    sizes = {path.name: len(list(path.glob("*.py"))) for path in folders}
    assert {name: size for name, size in sizes.items() if size > 20} == {}
