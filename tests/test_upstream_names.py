"""The table of names is whole: introspection and a look at our sources find what it must hold."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from functools import cache

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from trl import SFTTrainer

from qlora_cli import upstream
from qlora_cli.train.trainer import QloraTrainer
from qlora_cli.upstream_names import NAMES
from qlora_cli.upstream_row import TESTED, Use
from tests.sources import ROOT, nodes_of, python_files, tree_of

SOURCES = [path for path in python_files("qlora_cli") if not path.stem.startswith("upstream")]
LAST_PARTS = {name.path.rpartition(".")[2] for name in NAMES}

OF_PYTHON = {
    "_replace": "a named tuple's public method",
    "_fields": "a named tuple's public field",
    "_exit": "`os._exit`",
    "_C": "the module `torch._C`, whose names are in the table",
}

OWN_TEXTS = {
    "_nothing": "a variable in templates that we change",
    "_": "a character, or the beginning of a word",
    "_Tree": "the name of a type",
    "_name_or_path": "a key of config.json",
    "_scale_inv": "the end of a tensor's name",
    "_blocks": "the end of a tensor's name",
    "_scales": "the end of a tensor's name",
    "_loss": "the end of a key",
    "_perplexity": "the end of a key",
    "_steps": "the end of a key",
    "_strategy": "the end of a key",
    "_fingerprint": "the end of a key",
}


def is_private(text):
    return text.startswith("_") and not text.startswith("__")


def foreign_names(nodes):
    """Underscored names in a file that are looked up on anything but `self`, imported from elsewhere, or in texts."""
    for node in nodes:
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                continue
            case ast.Attribute(attr=name) if is_private(name):
                yield name, node.lineno
            case ast.ImportFrom(module=str(module), names=names) if not module.startswith("qlora_cli"):
                is_below_private = any(map(is_private, module.split(".")))
                yield from ((each.name, node.lineno) for each in names if is_private(each.name) or is_below_private)
            case ast.Constant(value=str(text)) if text.isidentifier() and is_private(text) and text not in OWN_TEXTS:
                yield text, node.lineno


def inherited_names(nodes, own):
    """Underscored names that a file looks up on `self` and that no class of ours has."""
    for node in nodes:
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name) if is_private(name) and name not in own:
                yield name, node.lineno


def names_of_ours():
    """Names of methods and fields of our classes, and of what they set on themselves, those of the table left out."""
    for path in SOURCES:
        for node in nodes_of(path):
            match node:
                case (
                    ast.FunctionDef(name=name)
                    | ast.AsyncFunctionDef(name=name)
                    | ast.AnnAssign(target=ast.Name(id=name))
                    | ast.Name(id=name, ctx=ast.Store())
                ):
                    yield name
                case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                    yield name


@cache
def own():
    return frozenset(names_of_ours())


def test_every_private_name_of_a_library_in_our_code_is_in_the_table():
    known = LAST_PARTS | OF_PYTHON.keys()
    strangers = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in SOURCES
        for name, line in (*foreign_names(nodes_of(path)), *inherited_names(nodes_of(path), own()))
        if name not in known
    ]
    assert strangers == []


@pytest.mark.parametrize(
    "source",
    [
        "model._is_stateful",
        "super()._run_step()",
        "self.trainer._step",
        "from transformers.trainer import _is_peft_model",
        "from torch._inductor import config",
        'getattr(model, "_tied", None)',
        "self._memory_tracker.start()",
    ],
)
def test_a_planted_name_is_found(source):
    nodes = tuple(ast.walk(ast.parse(source)))
    assert [name for name, _ in (*foreign_names(nodes), *inherited_names(nodes, own())) if name not in LAST_PARTS]


def test_every_exception_is_still_needed():
    text = "\n".join(path.read_text("utf-8") for path in SOURCES)
    assert [name for name in OF_PYTHON if f".{name}" not in text] == []
    assert [word for word in OWN_TEXTS if f'"{word}"' not in text and f"}}{word}" not in text] == []


def test_every_method_of_the_trainer_that_overrides_one_is_in_the_table():
    ours = [kind for kind in QloraTrainer.__mro__ if kind.__module__.startswith("qlora_cli.")]
    overriding = {
        name
        for kind in ours
        for name, value in vars(kind).items()
        if inspect.isfunction(value) and not name.startswith("__") and hasattr(SFTTrainer, name)
    }
    overridden = [name.path for name in NAMES if name.use is Use.OVERRIDDEN and name.path.startswith("Trainer.")]
    listed = {path.removeprefix("Trainer.") for path in overridden}
    assert {"_save_checkpoint", "training_step"} <= overriding
    assert overriding == listed


def test_what_our_trainer_keeps_takes_the_name_of_nothing_that_the_stock_trainer_keeps():
    trees = [node for path in SOURCES for node in tree_of(path).body if isinstance(node, ast.ClassDef)]
    kept = {
        node.attr
        for tree in trees
        if tree.name in {kind.__name__ for kind in QloraTrainer.__mro__}
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name)
    }
    stock = {
        word
        for kind in SFTTrainer.__mro__[:-1]
        for function in vars(kind).values()
        if inspect.isfunction(function)
        for code in upstream._codes(function)
        for word in code.co_names
    }
    own = {name for name in kept if is_private(name)} - LAST_PARTS
    assert {"_parts", "_saving"} <= own
    assert own & stock == set()


def test_every_name_of_the_table_is_still_used():
    words = {word for path in SOURCES for word in re.findall(r"\w+", path.read_text("utf-8"))}
    used = [name.path.rpartition(".")[2] for name in NAMES if name.use is not Use.TRUSTED]
    assert [name for name in used if name not in words] == []
    assert len({(name.road, name.module, name.path, name.inside) for name in NAMES}) == len(NAMES)


def test_the_tested_versions_are_those_of_the_constraints():
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {library: pinned[library] for library in TESTED} == TESTED


def test_every_range_ends_and_holds_the_tested_version():
    lines = (ROOT / "constraints.txt").read_text("utf-8").lower().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for requirement in map(Requirement, project["dependencies"]):
        assert requirement.specifier.contains(pinned[requirement.name.lower()]), requirement
        assert any(bound.operator == "<" for bound in requirement.specifier), requirement


@pytest.mark.parametrize("library", ["bitsandbytes", "peft", "torch", "transformers", "trl"])
def test_a_library_whose_private_names_we_need_is_bounded_by_its_minor_version(library):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    [requirement] = [each for each in map(Requirement, project["dependencies"]) if each.name == library]
    tested = Version(TESTED[library])
    assert not requirement.specifier.contains(f"{tested.major}.{tested.minor + 2}")


def test_the_page_of_faults_names_the_tested_versions():
    page = (ROOT / "docs" / "faults.md").read_text("utf-8").partition("\n\n|")[0]
    named = dict(re.findall(r"\b(torch|transformers|trl|peft|bitsandbytes) (\d[\d.]*\d)", page))
    assert named
    assert {library: TESTED[library].startswith(version) for library, version in named.items()} == dict.fromkeys(
        named, True
    )
