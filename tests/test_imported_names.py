"""Every name that is imported from this repository is there, also where nothing runs the import: GPU roads, benchmarks.

Files are read with `ast`; nothing is imported.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [
    path for folder in ("qlora_cli", "tests", "benchmarks", "docs") for path in sorted((ROOT / folder).rglob("*.py"))
]


@cache
def names_in(path: Path) -> frozenset[str]:
    """Names that a module binds anywhere."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update((name.asname or name.name).partition(".")[0] for name in node.names)
    return frozenset(names)


def missing_names(source: str) -> list[str]:
    """`module.name` of what is imported from this repository and is not there."""
    missing = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").partition(".")[0] not in ("qlora_cli", "tests"):
            continue
        place = ROOT / str(node.module).replace(".", "/")
        module = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"
        known = names_in(module) if module.is_file() else frozenset()
        for name in node.names:
            is_module = (place / f"{name.name}.py").is_file() or (place / name.name).is_dir()
            if name.name not in known and not is_module:
                missing.append(f"{node.module}.{name.name}")
    return missing


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imported_names_exist(path):
    assert missing_names(path.read_text("utf-8")) == []


def test_the_check_finds_a_name_that_is_gone():
    source = "def work():\n    from qlora_cli.errors import DataError, Gone\n    from qlora_cli.gone import x\n"
    assert missing_names(source) == ["qlora_cli.errors.Gone", "qlora_cli.gone.x"]
