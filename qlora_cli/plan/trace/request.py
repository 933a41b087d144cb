"""Request for a plan: a recipe, the base's configuration without its weights, and the device it is to run on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedConfig

from qlora_cli.constants import AMPERE
from qlora_cli.model.device import DTYPES
from qlora_cli.plan.machine.device import Device
from qlora_cli.recipe.schema import Recipe
from qlora_cli.recipe.section import Section


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
        """Dtype in which the model computes, as `pick_dtype` would choose it on the device."""
        name = self.recipe.model.dtype
        if name != "auto":
            return DTYPES[name]
        if self.device.kind == "cpu":
            return torch.float32
        return torch.bfloat16 if self.device.capability >= AMPERE else torch.float16

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """Dtype of float32 adapters under autocast; None where nothing is cast, as in `trainer_arguments`."""
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
