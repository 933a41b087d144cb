"""`--set a.b=c`: one value from the command line, laid over the recipe file."""

from __future__ import annotations

from qlora_cli.recipe.secret_values import SECRETS_HINT, without_secrets
from qlora_cli.recipe.tree import Node, PlacedProblem, RecipePlace, problem_at
from qlora_cli.recipe.yaml_text import parse_yaml
from qlora_cli.secrets import find_secret


def parse_override(text: str) -> tuple[Node | None, list[PlacedProblem]]:
    """The tree that `a.b=c` stands for, its value read as YAML, and what is wrong with it.

    >>> tree, problems = parse_override("training.learning_rate=1e-4")
    >>> tree.plain(), str(tree.place)
    ({'training': {'learning_rate': 0.0001}}, '--set training.learning_rate=1e-4')
    """
    place = RecipePlace(f"--set {text}", 0)
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        return None, [problem_at(place, "this is not `key=value`", "write `--set training.learning_rate=1e-4`")]
    if kind := find_secret(key):  # the dots in it would cut it
        return None, [problem_at(place, f"the key is a secret: {kind}", SECRETS_HINT)]
    if parts == ["extends"]:
        return None, [problem_at(place, "'extends' belongs in the file", "set the keys themselves")]
    parsed = parse_yaml(value, place.file, is_option=True)
    if parsed.root is None and not parsed.problems:
        return None, [problem_at(place, f"'{key}' has no value", f"write `{key}=null` to take it away")]
    if parsed.root is None:
        return None, parsed.problems
    tree = parsed.root
    for part in reversed(parts):
        tree = Node({part: tree}, place)
    tree, secrets = without_secrets(tree)
    return tree, parsed.problems + secrets
