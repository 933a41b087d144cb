"""The recipe of tests that train on bases in integers."""

from __future__ import annotations

from qlora_cli.recipe.schema import Recipe


def integer_recipe(base, data, quantization=None, *, steps=4, **lora):
    """Four steps on a base in integers, computing in float32."""
    return Recipe.model_validate(
        {
            "name": "integers",
            "model": {"base_model": str(base), "dtype": "float32"},
            "quantization": quantization,
            "lora": {"r": 4} | lora,
            "data": {"train": str(data), "max_length": 128},
            "training": {
                "max_steps": steps,
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 1,
                "learning_rate": 0.02,
                "optim": "adamw_torch",
                "gradient_checkpointing": False,
            },
        }
    )
