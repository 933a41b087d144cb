"""A recipe file to a `Recipe` and back: everything that is wrong is reported at once, each with its place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from qlora_cli import console
from qlora_cli.errors import RecipeError
from qlora_cli.recipe.explain import explain
from qlora_cli.recipe.layers import Layers
from qlora_cli.recipe.overrides import parse_override
from qlora_cli.recipe.rules import check_rules
from qlora_cli.recipe.schema import Recipe
from qlora_cli.recipe.shipped import recipe_file
from qlora_cli.recipe.shipped_data import with_shipped_data
from qlora_cli.recipe.tree import Node, Place, PlacedProblem, find, merge, problem_at
from qlora_cli.recipe.written import Written
from qlora_cli.recipe.yaml_text import CoreSchemaLoader
from qlora_cli.secrets import find_secret

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, the parts it extends, and `--set` values over both.

    Args:
        path: the YAML file, or the name of a recipe that comes with qlora.
        overrides: texts such as `lora.r=32`; later ones win.

    Raises:
        RecipeError: with every problem found, sorted by file and line.
        ArgumentError: if a name could mean a shipped recipe or a file here.
    """
    given, path = path, recipe_file(path)
    if path != given:
        console.note(f"'{given}' is the recipe that comes with qlora: {path}")
    layers = Layers()
    root = layers.load(path)
    problems = layers.problems
    for text in overrides:
        override, override_problems = parse_override(text)
        problems += override_problems
        root = merge(root, override) if override else root
    if not layers.is_whole:
        raise _as_error(problems)
    root, name_problems = _with_name(with_shipped_data(root), path)
    problems += name_problems

    recipe: Recipe | None = None
    doubtful: set[str] = set()
    try:
        recipe = Recipe.model_validate(root.plain())
    except ValidationError as error:
        found, doubtful = explain(error.errors(include_url=False), root)
        problems += found
    problems += _conflicts(root, doubtful)
    if problems or recipe is None:
        raise _as_error(problems)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out; it loads back to an equal `Recipe`.

    Keys without a value are left out, and so are defaults that have no effect beside another setting: written
    out, they would be refused as a contradiction.

    Raises:
        ValueError: if the recipe was built in code with settings that `load_recipe` refuses.
    """
    values = recipe.model_dump(mode="json", exclude_none=True)
    for conflict in check_rules(values):
        *section, key = conflict.path
        holder: Any = values
        for part in section:
            holder = holder[part]
        holder.pop(key, None)
    if Recipe.model_validate(values) != recipe:
        raise ValueError("this recipe was not loaded by load_recipe: its settings contradict each other")
    return yaml.dump(values, Dumper=_RecipeDumper, sort_keys=False, allow_unicode=True, width=100)


class _RecipeDumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as anything else."""


_RecipeDumper.yaml_implicit_resolvers = {
    **{first: list(pairs) for first, pairs in yaml.SafeDumper.yaml_implicit_resolvers.items()},
    **CoreSchemaLoader.yaml_implicit_resolvers,
}


def _with_name(root: Node, path: Path) -> tuple[Node, list[PlacedProblem]]:
    """The tree with `name` filled in from the file name where it is not written."""
    if root.child("name") is not None:
        return root, []
    place = Place(str(path), 1)
    if kind := find_secret(path.stem):
        return root, [problem_at(place, f"the file name holds a secret: {kind}", "rename the file")]
    if NAME_PATTERN.fullmatch(path.stem):
        return merge(root, Node({"name": Node(path.stem, place)}, place)), []
    text = f"the file name '{path.stem}' cannot name the run"
    hint = "add `name:` of letters, digits, '.', '_' and '-', or rename the file"
    stand_in = Node({"name": Node("unnamed", place)}, place)
    return merge(root, stand_in), [problem_at(place, text, hint)]


def _conflicts(root: Node, doubtful: set[str]) -> list[PlacedProblem]:
    """Problems between settings, except where one of the two is itself at fault."""
    written = root.plain()
    for key in doubtful:
        _take_out(written, key)
    return [
        problem_at(find(root, conflict.path).place, conflict.text, conflict.hint)
        for conflict in check_rules(written)
        if not any(f"{key}.".startswith(f"{other}.") for key in doubtful for other in conflict.others)
    ]


def _take_out(written: Written, key: str) -> None:
    """Drop a dotted key from nested dicts; where it lies in a list, the whole list goes."""
    holder: Any = written
    *section, last = key.split(".")
    for part in section:
        below = holder.get(part)
        if not isinstance(below, dict):
            holder.pop(part, None)
            return
        holder = below
    holder.pop(last, None)


def _as_error(problems: list[PlacedProblem]) -> RecipeError:
    ordered = sorted(problems, key=lambda placed: placed[0])
    return RecipeError(list(dict.fromkeys(problem for _, problem in ordered)))
