"""What is planned: a recipe, the base's configuration without its weights, and the device it is to run on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import LlamaConfig, PreTrainedConfig

from qlora_cli.constants import AMPERE
from qlora_cli.errors import RecipeError
from qlora_cli.model.device import DTYPES
from qlora_cli.plan.device import Device
from qlora_cli.recipe.schema import Recipe
from qlora_cli.recipe.section import Section

HEAD_DIM = 128
"""Width of an attention head in a sketch, as in Llama and Qwen."""

LLAMA_3_VOCABULARY = 128_256
LLAMA_3_POSITIONS = 131_072


@dataclass(frozen=True)
class PlanRequest:
    """One training step to be planned."""

    recipe: Recipe
    config: PreTrainedConfig
    """The base's `config.json`; its weights are never looked at."""

    device: Device = field(default_factory=Device)

    @property
    def batch_size(self) -> int:
        """Rows in one forward pass."""
        return self.recipe.training.rows_at_once

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in, as `pick_dtype` would choose it on the device."""
        name = self.recipe.model.dtype
        if name != "auto":
            return DTYPES[name]
        if self.device.kind == "cpu":
            return torch.float32
        return torch.bfloat16 if self.device.capability >= AMPERE else torch.float16

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """What float32 adapters compute in through autocast; None where nothing is cast, as in `trainer_arguments`."""
        is_cast = self.recipe.lora.autocast_adapter_dtype and self.dtype is not torch.float32
        return self.dtype if is_cast else None

    @property
    def has_mask(self) -> bool:
        """Whether attention gets a dense mask: rows of several documents, or rows padded to one length.

        A variable-length kernel takes the documents' bounds instead, and one row of one document needs neither.
        """
        if self.recipe.model.attn_implementation.startswith("flash_attention"):
            return False
        return self.recipe.data.packing or self.batch_size > 1

    def changed(self, settings: Mapping[str, Any]) -> PlanRequest:
        """The same plan with other values under recipe keys such as `lora.r`.

        Raises:
            ValueError: if there is no such key.
        """
        recipe = self.recipe
        for key, value in settings.items():
            name, _, field = key.partition(".")
            section = getattr(recipe, name, None)
            if not isinstance(section, Section) or field not in type(section).model_fields:
                raise ValueError(f"the recipe has no key '{key}'")
            recipe = recipe.model_copy(update={name: section.model_copy(update={field: value})})
        return replace(self, recipe=recipe)


def sketch_config(
    num_params: int, *, hidden_size: int, num_layers: int, vocab_size: int = LLAMA_3_VOCABULARY
) -> PreTrainedConfig:
    """A Llama of about `num_params` parameters, for a base of which only the size is known.

    Heads are 128 wide, four query heads share a key head, and input and output embeddings are two matrices; what is
    left goes into the MLPs, in multiples of 64.

    Raises:
        RecipeError: if the width is no multiple of 128, or embeddings and attention alone exceed `num_params`.

    >>> sketch_config(8_030_000_000, hidden_size=4096, num_layers=32).intermediate_size
    14336
    """
    if hidden_size % HEAD_DIM:
        raise RecipeError(
            f"--hidden is {hidden_size}, not a multiple of the width of an attention head, {HEAD_DIM}",
            hint=f"try --hidden {max(1, round(hidden_size / HEAD_DIM)) * HEAD_DIM}",
        )
    num_heads = hidden_size // HEAD_DIM
    num_key_heads = num_heads // 4 if num_heads % 4 == 0 else num_heads
    attention = 2 * hidden_size * HEAD_DIM * (num_heads + num_key_heads)
    left = num_params - 2 * vocab_size * hidden_size - num_layers * attention
    intermediate_size = round(left / (3 * hidden_size * num_layers) / 64) * 64
    if intermediate_size <= 0:
        raise RecipeError(
            f"--params {num_params:,} is less than the embeddings and attention of --hidden {hidden_size} and "
            f"--layers {num_layers} take",
            hint="give more parameters, fewer layers or a smaller width",
        )
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_key_heads,
        max_position_embeddings=LLAMA_3_POSITIONS,
        tie_word_embeddings=False,
    )
