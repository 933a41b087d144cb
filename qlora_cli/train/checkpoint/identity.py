"""Identity of a run: base, tokenizer, template, data, and the recipe keys that decide what a step computes."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
import time
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from qlora_cli.data.prepare import PreparedData
from qlora_cli.model.device import dtype_name, pick_device, pick_dtype
from qlora_cli.model.fingerprint import (
    fingerprint_base,
    fingerprint_template,
    fingerprint_tokenizer,
    resolved_revision,
)
from qlora_cli.recipe.schema import Recipe
from qlora_cli.run.manifest import library_versions

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
"""Keys that do not touch what a step computes; a trailing dot stands for all keys of a section."""

MAY_GROW = ("training.max_steps", "training.num_train_epochs")
"""Keys that say when the run ends: a resumed run may end later."""

RunIdentity = dict[str, dict[str, Any]]
"""Section of the manifest -> values; each section has a `fingerprint`."""


def run_identity(
    recipe: Recipe,
    prepared: PreparedData,
    tokenizer: PreTrainedTokenizerBase,
    printed_date: datetime.date | None = None,
) -> RunIdentity:
    """Identity of base, tokenizer, template and data; a resumed run must find the same.

    Args:
        printed_date: today, as the rows hold it, where the chat template prints it.
    """
    return {
        "base": {
            "base_model": recipe.model.base_model,
            "revision": resolved_revision(recipe.model),
            "fingerprint": fingerprint_base(recipe.model),
        },
        "tokenizer": {"fingerprint": fingerprint_tokenizer(tokenizer)},
        "template": {"fingerprint": fingerprint_template(tokenizer)},
        "data": {
            "fingerprint": prepared.fingerprint,
            "num_train_rows": prepared.report.num_train,
            "num_eval_rows": prepared.report.num_eval,
            **({"date": str(printed_date)} if printed_date else {}),
        },
    }


def environment_info(recipe: Recipe) -> dict[str, Any]:
    """When, with what and on what the run was started."""
    device = pick_device()
    is_gpu = device.type == "cuda"
    return {
        "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": library_versions(),
        "hardware": {
            "device": torch.cuda.get_device_name(device) if is_gpu else "cpu",
            "machine": platform.machine(),
            "num_threads": torch.get_num_threads(),
        },
        "dtype": dtype_name(pick_dtype(recipe.model.dtype, device)),
        "seed": recipe.training.seed,
    }


def changed_keys(before: Recipe, after: Recipe) -> list[tuple[str, Any, Any]]:
    """Keys whose value differs and that a resumed run must not change, with both values.

    A later end of the run is not a change: what is done stays what it was.
    """
    old, new = _training_keys(before), _training_keys(after)
    changed = [(key, old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys())]
    (length, unit), (new_length, new_unit) = before.training.length, after.training.length
    if unit != new_unit or length > new_length:
        changed += [(key, _flat(before.model_dump())[key], _flat(after.model_dump())[key]) for key in MAY_GROW]
    return [(key, value, other) for key, value, other in changed if value != other]


def _training_keys(recipe: Recipe) -> dict[str, Any]:
    """The keys that decide what a step computes, by their dotted names."""
    flat = _flat(recipe.model_dump(mode="json"))
    return {key: value for key, value in flat.items() if not key.startswith((*MAY_CHANGE, *MAY_GROW))}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys monitored by dots.

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


def checkpoint_identity(recipe: Recipe, facts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Facts in the manifest of every checkpoint: a hash of the recipe's training keys, and the run's identity.

    Args:
        recipe: as it is trained.
        facts: section -> values, of which `fingerprint` is taken.
    """
    meaning = json.dumps(_training_keys(recipe), sort_keys=True)
    seal = {f"{section}_fingerprint": values["fingerprint"] for section, values in facts.items()}
    return seal | {"recipe_sha256": hashlib.sha256(meaning.encode()).hexdigest()}
