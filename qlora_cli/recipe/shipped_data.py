"""Data that come with the shipped recipes, found from any directory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from qlora_cli.recipe.shipped import shipped_root
from qlora_cli.recipe.tree import Node

FOLDER = Path("recipes", "data")
"""Their folder under `shipped_root()`, as the recipes name it."""

KEYS = (("data", "train"), ("data", "eval"), ("eval", "tasks"))
"""Keys where a recipe names data: as a path, as a mapping with a `path`, or as a list of these."""


def shipped_data(given: Path) -> Path | None:
    """The shipped file that a path such as `recipes/data/mailbox.txt` means where there is none of that name here.

    None for a path that is here, and for one of any other folder.
    """
    if given.parent != FOLDER or os.path.lexists(given):
        return None
    shipped = shipped_root() / given
    return shipped if os.path.isfile(shipped) else None


def with_shipped_data(root: Node) -> Node:
    """A recipe's tree with the full paths of shipped data, so that its run can be evaluated from any directory."""
    for keys in KEYS:
        root = _located_under(root, keys)
    return root


def _located_under(node: Node, keys: Sequence[str]) -> Node:
    if not keys:
        return _located(node)
    below = node.child(keys[0])
    if below is None or not isinstance(node.value, dict):
        return node
    return Node({**node.value, keys[0]: _located_under(below, keys[1:])}, node.place)


def _located(node: Node) -> Node:
    """The node with each path in it located, whichever of the three forms it has."""
    if isinstance(node.value, list):
        return Node([_located(item) for item in node.value], node.place)
    if isinstance(node.value, dict):
        return _located_under(node, ("path",))
    shipped = shipped_data(Path(node.value)) if isinstance(node.value, str) else None
    return Node(str(shipped), node.place) if shipped else node
