"""A recipe that a program holds as a mapping, as the tree that a YAML file is read into."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from qlora_cli.errors import ArgumentError
from qlora_cli.recipe.tree import UNREADABLE, Node, PathPart, PlacedProblem, RecipePlace, path_text, problem_at
from qlora_cli.recipe.yaml_text import MAX_DEPTH


def plain_scalar(value: Any) -> str | int | float | bool | None:
    """The value as a YAML file would hold it: paths and enums of texts as text, numbers of NumPy as numbers.

    Raises:
        TypeError: if it is none of them.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # of an enum, what it holds
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise TypeError(type(value).__qualname__)


def tree_of(recipe: Mapping[str, Any], place: RecipePlace) -> tuple[Node, list[PlacedProblem]]:
    """The tree of a mapping, in which every value has the same place, and what no recipe can hold.

    Paths become text, and tuples lists.

    >>> tree, problems = tree_of({"lora": {"target_modules": ("q_proj", "v_proj")}}, RecipePlace("recipe", 0))
    >>> tree.plain(), problems
    ({'lora': {'target_modules': ['q_proj', 'v_proj']}}, [])
    """
    problems: list[PlacedProblem] = []

    def refuse(text: str, hint: str) -> Node:
        problems.append(problem_at(place, text, hint))
        return Node(UNREADABLE, place)

    def node(value: Any, path: tuple[PathPart, ...]) -> Node:
        if len(path) > MAX_DEPTH:
            return refuse(f"'{path[0]}' is nested more than {MAX_DEPTH} times", "does it hold itself?")
        if isinstance(value, Mapping):
            kept = {}
            for key, child in value.items():
                if isinstance(key, str):
                    kept[key] = node(child, (*path, key))
                else:
                    where = f" in '{path_text(path)}'" if path else ""
                    refuse(f"{key!r} is not a key{where}", "keys are text, such as 'lora'")
            return Node(kept, place)
        if isinstance(value, list | tuple):
            return Node([node(item, (*path, index)) for index, item in enumerate(value)], place)
        try:
            return Node(plain_scalar(value), place)
        except TypeError:
            pass
        name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        return refuse(
            f"'{path_text(path)}' is of the type {name}",
            "a recipe holds text, numbers, true, false, null, lists and mappings, as YAML does",
        )

    return node(recipe, ()), problems


def as_texts(overrides: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Overrides as `--set` takes them; what JSON says YAML says too.

    Raises:
        ArgumentError: for a value that no recipe can hold.

    >>> as_texts({"training.learning_rate": 2e-4, "lora.target_modules": ["q_proj"]})
    ['training.learning_rate=0.0002', 'lora.target_modules=["q_proj"]']
    """
    if not isinstance(overrides, Mapping):
        return [overrides] if isinstance(overrides, str) else list(overrides)
    texts = []
    for key, value in overrides.items():
        try:
            texts.append(f"{key}={json.dumps(value, ensure_ascii=False, default=plain_scalar)}")
        except TypeError:
            raise ArgumentError(
                f"the override '{key}' is of the type {type(value).__qualname__}",
                hint="a recipe holds text, numbers, true, false, null, lists and mappings, as YAML does",
            ) from None
    return texts
