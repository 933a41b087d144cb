"""Nothing in the package is there for the tests alone: what no other line of it reads is deleted, or wired up."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable
from functools import cache

from tests.sources import ROOT, nodes_of, python_files, tree_of

FILES = python_files("qlora_cli")

CALLED_BY_LIBRARIES = {
    "TrainerCallback",
    "Trainer",
    "SFTTrainer",
    "NodeTransformer",
    "Handler",
    "HfQuantizer",
    "ConversionOps",
    "H11Protocol",
    "Response",
}
READ_BY_OTHERS = {
    "capture_signals": "by uvicorn",
    "handle_exit": "by uvicorn",
    "format_help": "by typer",
    "writelines": "by those who write to the terminal's stream",
    "redirect_request": "by urllib",
    "put": "by transformers' generate",
    "add_partial": "by lm-eval",
    "model_config": "by pydantic",
    "_without_other_method": "by pydantic",
    "computed_in": "in the JSON of `qlora generate`",
    "derived": "by the reader of cards.yaml",
    "_holder": "keeps alive what it holds",
}


def names_of(node: ast.stmt) -> list[str]:
    """What a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return [node.target.id] if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else []


def reads_of(nodes: Iterable[ast.AST]) -> Counter[str]:
    """Names and attributes that nodes read, how often."""
    found: Counter[str] = Counter()
    for part in nodes:
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load):
            found[part.id] += 1
        elif isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Load):
            found[part.attr] += 1
    return found


@cache
def imported() -> frozenset[tuple[str | None, str]]:
    """Module and name of every `from ... import` of the package."""
    nodes = (node for path in FILES for node in nodes_of(path) if isinstance(node, ast.ImportFrom))
    return frozenset((node.module, alias.name) for node in nodes for alias in node.names)


@cache
def attributes() -> frozenset[str]:
    return frozenset(node.attr for path in FILES for node in nodes_of(path) if isinstance(node, ast.Attribute))


def test_every_function_class_and_constant_is_used_by_the_package():
    unused = []
    for path in FILES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        reads = reads_of(nodes_of(path))
        for node in tree_of(path).body:
            for name in names_of(node):
                own = reads_of(ast.walk(node))[name] if not isinstance(node, ast.Assign | ast.AnnAssign) else 0
                is_read = reads[name] > own or (module, name) in imported() or name in attributes()
                if not is_read and not name.startswith("__") and not getattr(node, "decorator_list", []):
                    unused.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}")
    assert unused == []


def test_every_method_and_field_is_used_by_the_package():
    reads: Counter[str] = Counter()
    for path in FILES:
        reads += reads_of(nodes_of(path))
    unused = []
    for path in FILES:
        for owner in (node for node in nodes_of(path) if isinstance(node, ast.ClassDef)):
            bases = {ast.unparse(base).rpartition(".")[2] for base in owner.bases}
            if any(base.endswith(tuple(CALLED_BY_LIBRARIES)) for base in bases):
                continue
            for node in owner.body:
                for name in names_of(node):
                    if reads[name] == 0 and not name.startswith("__") and name not in READ_BY_OTHERS:
                        unused.append(f"{path.relative_to(ROOT)}:{node.lineno} {owner.name}.{name}")
    assert unused == []


def test_a_constant_has_one_home():
    homes: dict[tuple[str, str], list[str]] = {}
    for path in FILES:
        for node in tree_of(path).body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                for name in names_of(node):
                    if name.isupper():
                        homes.setdefault((name, ast.unparse(node.value)), []).append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}
