"""Which class loads a base to be tuned on text, and which one is the base's own."""

from __future__ import annotations

from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

AutoClass = Any
"""One of transformers' auto classes, which have no type of their own."""


def auto_class(config: PreTrainedConfig) -> AutoClass:
    """The auto class that loads a base for training, evaluation and merging on text.

    `AutoModelForCausalLM` wherever it knows the base: of Qwen3.5 and Llama 4 it loads the language model alone. Bases
    that have only a class for images and text, such as Mistral Small 3 and Qwen2.5-VL, are loaded whole.
    Encoder-decoder models are left to `AutoModelForCausalLM`, which refuses them.
    """
    is_known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in _own_code(config)
    if is_known or config.is_encoder_decoder or type(config) not in MODEL_FOR_MULTIMODAL_LM_MAPPING:
        return AutoModelForCausalLM
    return AutoModelForMultimodalLM


def own_auto_class(config: PreTrainedConfig) -> AutoClass:
    """The auto class that loads everything that the base's files hold, as engines that serve it do."""
    is_whole = type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING and not _own_code(config)
    return AutoModelForMultimodalLM if is_whole else auto_class(config)


def is_loaded_whole(base: PreTrainedModel, config: PreTrainedConfig) -> bool:
    """Whether `base` is of the class that its files are made of.

    Args:
        base: what `auto_class` has made of it.
        config: of the whole base, as its config.json has it.
    """
    return own_auto_class(config) is auto_class(config) or type(base) is MODEL_FOR_MULTIMODAL_LM_MAPPING[type(config)]


def has_parts(config: PreTrainedConfig) -> bool:
    """Whether the base is made of several models, such as a language model and a vision tower."""
    return bool(config.sub_configs)


def _own_code(config: PreTrainedConfig) -> dict[str, str]:
    """Classes that the base's repository brings along and is trusted with, by the auto class that they stand for."""
    is_own = not type(config).__module__.startswith("transformers.")
    return (getattr(config, "auto_map", None) or {}) if is_own else {}
