"""What can be read at a glance stays so: short functions, short files, and no work at import."""

from __future__ import annotations

import ast

from tests.sources import ROOT, nodes_of, python_files, tree_of

PACKAGE = ROOT / "qlora_cli"
FILES = python_files("qlora_cli")
MAX_FUNCTION_LINES = 50
MAX_FILE_LINES = 300

PUTS_COMMANDS_TOGETHER = PACKAGE / "cli" / "app.py"


def test_no_function_is_longer_than_a_screen():
    functions = [
        (f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1)
        for path in FILES
        for node in nodes_of(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert len(functions) > 1000
    assert [found for found in functions if found[1] > MAX_FUNCTION_LINES] == []


def test_no_file_is_longer_than_it_is_read():
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text("utf-8").splitlines()) for path in FILES}
    assert {path: length for path, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_importing_a_file_calls_nothing_for_its_effect():
    calls = [
        f"{path.relative_to(PACKAGE)}:{node.lineno} {ast.unparse(node)}"
        for path in FILES
        for node in tree_of(path).body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and path != PUTS_COMMANDS_TOGETHER
    ]
    assert calls == []
