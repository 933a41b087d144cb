"""A recipe file to a `Recipe` and back: all errors are reported together, each with its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from qlora_cli import console
from qlora_cli.errors import RecipeError
from qlora_cli.recipe.explain import explain
from qlora_cli.recipe.extends import MAPPING_PATH, Layers
from qlora_cli.recipe.local_checks import check_local, default_notes
from qlora_cli.recipe.one_line import RecipeDumper
from qlora_cli.recipe.overrides import parse_override
from qlora_cli.recipe.precedence import left_out
from qlora_cli.recipe.rules import check_rules
from qlora_cli.recipe.schema import Recipe
from qlora_cli.recipe.shipped import recipe_file
from qlora_cli.recipe.shipped_data import with_shipped_data
from qlora_cli.recipe.tree import Node, PlacedProblem, RecipePlace, find, merge, problem_at
from qlora_cli.recipe.written import Conflict, RawRecipe, at
from qlora_cli.secrets import find_secret

YAML_FAULTS = (yaml.YAMLError,)
"""What reading a file raises that is no YAML, whoever reads it."""

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def load_recipe(
    source: Path | Mapping[str, Any], overrides: Sequence[str] = (), on_note: Callable[[str], None] = console.note
) -> Recipe:
    """Read a recipe, the parts it extends, and `--set` values over both.

    Args:
        source: the YAML file, the name of a recipe that comes with qlora, or the same keys in a mapping.
        overrides: texts such as `lora.r=32`; later ones win.
        on_note: called with each setting that is left out, since one that excludes it was written over it.

    Raises:
        RecipeError: with every problem found, sorted by file and line.
        ArgumentError: if a name could mean a shipped recipe or a file here.
    """
    return _load(source, overrides, check_rules, on_note)[0]


def check_recipe(path: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, list[str]]:
    """Read a recipe and look at what it names on this machine; with notes on what is doubtful, and not wrong.

    Raises:
        RecipeError: as `load_recipe`, also with what is missing on this machine or does not suit the recipe.
    """
    recipe, root = _load(path, overrides, lambda written: [*check_rules(written), *check_local(written)], console.note)
    return recipe, default_notes(recipe, is_length_written=at(root.plain(), "data.max_length") is not None)


def _load(
    source: Path | Mapping[str, Any],
    overrides: Sequence[str],
    check: Callable[[RawRecipe], list[Conflict]],
    on_note: Callable[[str], None],
) -> tuple[Recipe, Node]:
    """The recipe and the tree that it was read from, with what `check` finds among the problems."""
    layers = Layers()
    if isinstance(source, Path):
        path = recipe_file(source)
        if path != source:
            on_note(f"'{source}' is the recipe that comes with qlora: {path}")
        root = layers.load(path)
    else:
        path, root = MAPPING_PATH, layers.load_mapping(source)
    files = layers.files(root)
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
    root, notes = left_out(root, files, lambda tree: _conflicts(tree, doubtful, check_rules))
    for note in notes:
        on_note(note)
    problems += [
        problem_at(find(root, conflict.path).place, conflict.text, conflict.hint)
        for conflict in _conflicts(root, doubtful, check)
    ]
    if problems or recipe is None:
        raise _as_error(problems)
    return (Recipe.model_validate(root.plain()) if notes else recipe), root


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
    return yaml.dump(values, Dumper=RecipeDumper, sort_keys=False, allow_unicode=True, width=100)


def _with_name(root: Node, path: Path) -> tuple[Node, list[PlacedProblem]]:
    """The tree with `name` filled in from the file name where it is not written."""
    if root.child("name") is not None:
        return root, []
    place = RecipePlace(str(path), 0 if path is MAPPING_PATH else 1)
    if kind := find_secret(path.stem):
        return root, [problem_at(place, f"the file name holds a secret: {kind}", "rename the file")]
    if NAME_PATTERN.fullmatch(path.stem):
        return merge(root, Node({"name": Node(path.stem, place)}, place)), []
    text = f"the file name '{path.stem}' cannot name the run"
    hint = "add `name:` of letters, digits, '.', '_' and '-', or rename the file"
    stand_in = Node({"name": Node("unnamed", place)}, place)
    return merge(root, stand_in), [problem_at(place, text, hint)]


def _conflicts(root: Node, doubtful: set[str], check: Callable[[RawRecipe], list[Conflict]]) -> list[Conflict]:
    """Conflicts between settings, except where one of the two is itself at fault."""
    written = root.plain()
    for key in doubtful:
        _take_out(written, key)
    return [
        conflict
        for conflict in check(written)
        if not any(f"{key}.".startswith(f"{other}.") for key in doubtful for other in conflict.others)
    ]


def _take_out(written: RawRecipe, key: str) -> None:
    """Drop a dotted key from nested dicts; where it is in a list, the list is dropped."""
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
