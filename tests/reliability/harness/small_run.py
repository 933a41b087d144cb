"""Recipes of a few steps on the tiny base, and trainers to look inside of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_cli.recipe.schema import Recipe
from qlora_cli.run.directory import RunDirectory
from qlora_cli.train import session
from qlora_cli.train.result import TrainingResult
from qlora_cli.train.session import TrainOptions, train_recipe
from qlora_cli.train.trainer import QloraTrainer

STRAIGHT = TrainOptions()

BASES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"model": {"dtype": "bfloat16"}},
    "bf16 adapter": {"model": {"dtype": "bfloat16"}, "lora": {"autocast_adapter_dtype": False}},
    "nf4": {"quantization": {}},
    "int8": {"quantization": {"quant_type": "int8"}},
}
"""Name -> the sections of a recipe that make such a base."""


def small_recipe(base: Path, rows: Path, /, **sections: Any) -> Recipe:
    """Batches of two rows, none held out, adapters on two modules of a layer; sections and keys can be overridden."""
    values: dict[str, Any] = {
        "name": "small",
        "model": {"base_model": str(base)},
        "lora": {"r": 4, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]},
        "data": {"train": str(rows), "max_length": 128, "packing": False},
        "training": {
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": 0.01,
            "optim": "adamw_torch",
            "save_strategy": "steps",
            "save_steps": 1,
            "save_total_limit": 9,
        },
    }
    for section, keys in sections.items():
        values[section] = {**values.get(section, {}), **keys} if isinstance(keys, dict) else keys
    return Recipe.model_validate(values)


def train_with(
    recipe: Recipe, run: RunDirectory, prepare: Callable[[QloraTrainer], None], how: TrainOptions = STRAIGHT
) -> TrainingResult:
    """Train through the real session; `prepare` gets the trainer before its first step, to put a fault into it."""

    def make_and_prepare(*arguments: Any, **options: Any) -> QloraTrainer:
        trainer = setup_trainer(*arguments, **options)
        prepare(trainer)
        return trainer

    setup_trainer = session.setup_trainer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "setup_trainer", make_and_prepare)
        return train_recipe(recipe, run, how)
