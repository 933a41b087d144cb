"""What tests on a CUDA GPU stand on: recipes, trainers, and arithmetic that repeats to the bit."""

from __future__ import annotations

import os
from typing import Any

# cuBLAS repeats its results only with a workspace of fixed size; it reads this when it is first used.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch

from qlora_cli.recipe.schema import Recipe


@pytest.fixture
def deterministic():
    """Kernels that repeat to the bit; an operation that has none raises an error that names it."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def gpu_recipe(tiny_base, chat_data):
    """Builds an NF4 recipe of eight steps with dropout, packing and the default optimizer; keys can be overridden."""

    def build(**sections: Any) -> Recipe:
        values: dict[str, Any] = {
            "name": "gpu",
            "model": {"base_model": str(tiny_base)},
            "quantization": {},
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
            values[section] = {**values[section], **keys} if isinstance(keys, dict) else keys
        return Recipe.model_validate(values)

    return build
