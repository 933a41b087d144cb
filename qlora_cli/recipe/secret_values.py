"""A recipe holds no secrets: it is shared, stored beside the run and sent to trackers."""

from __future__ import annotations

from qlora_cli.recipe.tree import UNREADABLE, Node, PathPart, PlacedProblem, path_text, problem_at
from qlora_cli.secrets import find_secret

SECRETS_HINT = "take it out and set it in the environment: for example `export HF_TOKEN=...`"


def without_secrets(root: Node) -> tuple[Node, list[PlacedProblem]]:
    """The tree less its secrets, and where they stood; the problems name the key and the kind, never the value.

    A value that is one becomes `UNREADABLE`, so that no further problem shows it; a key that is one is left out.
    """
    problems: list[PlacedProblem] = []

    def clean(node: Node, path: tuple[PathPart, ...]) -> Node:
        if isinstance(node.value, dict):
            kept = {}
            for key, child in node.value.items():
                if kind := find_secret(key):
                    where = f"a key in '{path_text(path)}'" if path else "a key"
                    problems.append(problem_at(child.place, f"{where} is a secret: {kind}", SECRETS_HINT))
                else:
                    kept[key] = clean(child, (*path, key))
            return Node(kept, node.place)
        if isinstance(node.value, list):
            return Node([clean(item, (*path, index)) for index, item in enumerate(node.value)], node.place)
        if isinstance(node.value, str | int | float) and (kind := find_secret(str(node.value))):
            where = f"'{path_text(path)}'" if path else "the text"
            problems.append(problem_at(node.place, f"{where} holds a secret: {kind}", SECRETS_HINT))
            return Node(UNREADABLE, node.place)
        return node

    return clean(root, ()), problems
