"""Recipe values before they are checked: a tree in which every value knows where it was written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qlora_cli.errors import Problem


@dataclass(frozen=True, order=True)
class RecipePlace:
    """Place of a value: a line of a file, or a command-line option (line 0)."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


PlacedProblem = tuple[RecipePlace, Problem]


def problem_at(place: RecipePlace, text: str, hint: str = "") -> PlacedProblem:
    """A problem together with the place it sorts by."""
    return place, Problem(text, str(place), hint)


class Unreadable:
    """Stands for a value whose fault is already reported, so that nothing further is reported of it."""

    def __repr__(self) -> str:
        return "…"


UNREADABLE = Unreadable()
TreeValue = dict[str, "Node"] | list["Node"] | str | int | float | bool | None | Unreadable
PathPart = str | int
"""One step of a path: a key of a mapping, or an index of a list."""


@dataclass(frozen=True)
class Node:
    """A value and its place: the line of its key, or of its own start in a list."""

    value: TreeValue
    place: RecipePlace

    def plain(self) -> Any:
        """The value as plain dicts, lists and scalars.

        >>> here = RecipePlace("a.yaml", 1)
        >>> Node({"r": Node(8, here)}, here).plain()
        {'r': 8}
        """
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def child(self, part: PathPart) -> Node | None:
        """The value under a key or an index; None where there is none."""
        if isinstance(self.value, dict) and isinstance(part, str):
            return self.value.get(part)
        if isinstance(self.value, list) and isinstance(part, int) and part < len(self.value):
            return self.value[part]
        return None

    def at(self, path: Sequence[PathPart]) -> Node | None:
        """The node at `path` below this one; None where there is none."""
        node: Node | None = self
        for part in path:
            node = node.child(part) if node else None
        return node


def find(root: Node, path: Sequence[PathPart]) -> Node:
    """The node at `path`, or the nearest one above it that exists."""
    node = root
    for part in path:
        below = node.child(part)
        if below is None:
            return node
        node = below
    return node


def merge(lower: Node, upper: Node) -> Node:
    """`upper` laid over `lower`: mappings merge key by key, anything else replaces; each value keeps its place.

    >>> a, b = RecipePlace("a.yaml", 1), RecipePlace("b.yaml", 1)
    >>> lower = Node({"r": Node(8, a), "bias": Node("none", a)}, a)
    >>> merge(lower, Node({"r": Node(16, b)}, b)).plain()
    {'r': 16, 'bias': 'none'}
    """
    if not isinstance(lower.value, dict) or not isinstance(upper.value, dict):
        return upper
    merged = dict(lower.value)
    for key, child in upper.value.items():
        merged[key] = merge(merged[key], child) if key in merged else child
    return Node(merged, upper.place)


def take_out(root: Node, path: Sequence[PathPart]) -> Node:
    """The tree without what is at `path`.

    >>> here = RecipePlace("a.yaml", 1)
    >>> lora = Node({"r": Node(8, here), "bias": Node("none", here)}, here)
    >>> take_out(Node({"lora": lora}, here), ("lora", "r")).plain()
    {'lora': {'bias': 'none'}}
    """
    part, *rest = path
    if isinstance(root.value, list) and isinstance(part, int):
        items = list(root.value)
        items[part : part + 1] = [take_out(items[part], rest)] if rest else []
        return Node(items, root.place)
    if not isinstance(root.value, dict) or part not in root.value:
        return root
    assert isinstance(part, str)
    kept = {key: child for key, child in root.value.items() if key != part or rest}
    if rest:
        kept[part] = take_out(kept[part], rest)
    return Node(kept, root.place)


def path_text(path: Sequence[PathPart]) -> str:
    """A path as users write it.

    >>> path_text(("data", "train", 0, "path"))
    'data.train[0].path'
    """
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")
