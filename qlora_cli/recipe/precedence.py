"""Of two settings that exclude each other, the one that was written over the other counts.

`--set` lies over the recipe, and a recipe over the parts that it extends. In one file, or between two `--set`, nothing
lies over the other, and the rule that the pair breaks is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qlora_cli.recipe.tree import Node, PathPart, RecipePlace, path_text, take_out
from qlora_cli.recipe.written import Conflict

Path = tuple[PathPart, ...]


@dataclass(frozen=True)
class _Overridden:
    """A setting that another one was written over."""

    path: Path
    winner: Path
    winner_place: RecipePlace


def left_out(root: Node, files: Sequence[str], conflicts: Callable[[Node], list[Conflict]]) -> tuple[Node, list[str]]:
    """The tree without the settings that others were written over, and a sentence for each of them.

    Args:
        root: all layers merged.
        files: their names, the uppermost first; what is in none of them was set on the command line.
        conflicts: what is wrong between the settings of a tree.
    """
    ranks = {file: -index for index, file in enumerate(files)}
    decided: dict[Path, RecipePlace] = {}
    sentences = []
    while (found := _next(root, conflicts(root), decided, ranks)) is not None:
        sentences.append(_sentence(root, found))
        decided[found.path] = found.winner_place
        root = take_out(root, found.path)
    return root, sentences


def _next(
    root: Node, conflicts: list[Conflict], decided: dict[Path, RecipePlace], ranks: dict[str, int]
) -> _Overridden | None:
    """The first setting that may give way and is below one that excludes it."""
    for conflict in conflicts:
        for weaker in conflict.weaker:
            for winner in [conflict.path, *(tuple(other.split(".")) for other in conflict.others)]:
                node, place = root.at(weaker), _place(root, winner, decided)
                if node and place and ranks.get(node.place.file, 1) < ranks.get(place.file, 1):
                    return _Overridden(weaker, winner, place)
    return None


def _place(root: Node, path: Path, decided: dict[Path, RecipePlace]) -> RecipePlace | None:
    """Place of a setting, or of what left it out."""
    node = root.at(path)
    return node.place if node else decided.get(path)


def _sentence(root: Node, overridden: _Overridden) -> str:
    node = root.at(overridden.path)
    assert node is not None  # it was found there
    place = overridden.winner_place
    winner = f"`{place}`" if not place.line else f"'{path_text(overridden.winner)}' ({place})"
    return f"{winner} overrides {_shown(overridden.path, node)} ({node.place}), which is left out"


def _shown(path: Path, node: Node) -> str:
    """
    >>> here = RecipePlace("a.yaml", 1)
    >>> _shown(("training", "max_steps"), Node(5, here)), _shown(("lora", "modules_to_save", 0), Node("lm_head", here))
    ("'training.max_steps: 5'", "'lm_head' of 'lora.modules_to_save'")
    """
    value = node.plain()
    if isinstance(path[-1], int):
        return f"'{value}' of '{path_text(path[:-1])}'"
    if isinstance(value, dict | list):
        return f"'{path_text(path)}'"
    return f"'{path_text(path)}: {str(value).lower() if isinstance(value, bool) else value}'"
