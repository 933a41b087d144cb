"""Abilities that a base needs to be trained here, read from its class."""

from __future__ import annotations

import inspect

from transformers import PreTrainedModel

from qlora_cli.errors import RecipeError


def require_position_ids(base: PreTrainedModel) -> None:
    """Refuse a model that cannot be given the starts of documents.

    Raises:
        RecipeError: if its forward pass takes no `position_ids`.
    """
    if "position_ids" not in inspect.signature(type(base).forward).parameters:
        raise RecipeError(
            f"{type(base).__name__} takes no position_ids, which rows of this project are made of",
            hint="choose a base model with rotary or learned positions, such as Llama, Qwen, Mistral or GPT-2",
        )


def require_gradient_checkpointing(base: PreTrainedModel) -> None:
    """Refuse a model whose activations cannot be computed again in backward.

    Raises:
        RecipeError: if it does not support gradient checkpointing.
    """
    if not base.supports_gradient_checkpointing:
        raise RecipeError(
            f"{type(base).__name__} does not support gradient checkpointing",
            hint="--set training.gradient_checkpointing=false",
        )
