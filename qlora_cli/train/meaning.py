"""What a recipe means for training: the keys that a resumed run must find as they were."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from qlora_cli.recipe.schema import Recipe

MAY_CHANGE = (
    "name",
    "eval.",
    "tracking.",
    "training.logging_steps",
    "training.save_strategy",
    "training.save_steps",
    "training.save_total_limit",
    "training.early_stopping_patience",
    "training.early_stopping_threshold",
    "training.load_best_model_at_end",
)
"""Keys that do not touch what a step computes; a trailing dot stands for a whole section."""

MAY_GROW = ("training.max_steps", "training.num_train_epochs")
"""Keys that say when the run ends: a resumed run may end later."""


def changed_keys(before: Recipe, after: Recipe) -> list[tuple[str, Any, Any]]:
    """Keys whose value differs and that a resumed run must not change, with both values.

    A later end of the run is no change: what is done stays what it was.
    """
    old, new = _meaning(before), _meaning(after)
    changed = [(key, old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys())]
    (length, unit), (new_length, new_unit) = before.training.length, after.training.length
    if unit != new_unit or length > new_length:
        changed += [(key, _flat(before.model_dump())[key], _flat(after.model_dump())[key]) for key in MAY_GROW]
    return [(key, value, other) for key, value, other in changed if value != other]


def _meaning(recipe: Recipe) -> dict[str, Any]:
    """The keys that decide what a step computes, by their dotted names."""
    flat = _flat(recipe.model_dump(mode="json"))
    return {key: value for key, value in flat.items() if not key.startswith((*MAY_CHANGE, *MAY_GROW))}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots.

    >>> _flat({"lora": {"r": 8}, "name": "a"})
    {'lora.r': 8, 'name': 'a'}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def seal_of(recipe: Recipe, facts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the seal of every checkpoint repeats: the recipe's meaning, and what the run stands on.

    Args:
        recipe: as it is trained.
        facts: section -> values, of which `fingerprint` is taken.
    """
    meaning = json.dumps(_meaning(recipe), sort_keys=True)
    seal = {f"{section}_fingerprint": values["fingerprint"] for section, values in facts.items()}
    return seal | {"recipe_sha256": hashlib.sha256(meaning.encode()).hexdigest()}
