"""Subjects of docs/memory.md: published bases by their sizes, one recipe, and the memory budget of a step."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from transformers import LlamaConfig, MixtralConfig, PreTrainedConfig, Qwen2Config, Qwen3MoeConfig

from qlora_cli.plan.budget import MemoryBudget, plan
from qlora_cli.plan.trace.request import PlanRequest
from qlora_cli.recipe.schema import Recipe


def llama(
    vocabulary: int,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    key_heads: int,
    config_class: type[PreTrainedConfig] = LlamaConfig,
    **more: Any,
) -> PreTrainedConfig:
    """The configuration of a base that is built like Llama."""
    return config_class(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        **{"max_position_embeddings": 8192, "tie_word_embeddings": False, **more},
    )


BASES: dict[str, Callable[[], PreTrainedConfig]] = {
    "qwen2.5-0.5b": lambda: Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "llama-3.2-1b": lambda: LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    ),
    "llama-2-7b": lambda: llama(32_000, 4096, 11_008, 32, 32, 32),
    "llama-3.1-8b": lambda: llama(128_256, 4096, 14_336, 32, 32, 8),
    "llama-65b": lambda: llama(32_000, 8192, 22_016, 80, 64, 64),
    "llama-3.1-70b": lambda: llama(128_256, 8192, 28_672, 80, 64, 8),
    "mixtral-8x7b": lambda: MixtralConfig(
        vocab_size=32_000,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        sliding_window=None,
    ),
    "qwen3-30b-a3b": lambda: Qwen3MoeConfig(
        vocab_size=151_936,
        hidden_size=2048,
        moe_intermediate_size=768,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        tie_word_embeddings=False,
    ),
}
"""The sizes in the published config.json of each base."""

RECIPE: dict[str, Any] = {
    "model": {"base_model": "."},
    "quantization": {},
    "lora": {"r": 16, "lora_dropout": 0.0},
    "data": {"train": "rows.jsonl", "max_length": 2048},
    "training": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16},
}
"""NF4 with double quantization, rank 16 on all linear layers, checkpointing, packed rows, paged 8-bit AdamW."""


@cache
def traced(base: str, *overrides: str) -> MemoryBudget:
    """The memory budget of one step.

    Args:
        base: a key of `BASES`.
        overrides: as after `--set`, such as `data.max_length=512`.
    """
    recipe = Recipe.model_validate({"name": base, **RECIPE})
    if "quantization=null" in overrides:
        recipe = recipe.model_copy(update={"quantization": None})
    settings: dict[str, Any] = {}
    for override in overrides:
        key, _, value = override.partition("=")
        if value != "null":
            parsed = yaml.safe_load(value)
            settings[key] = tuple(parsed) if isinstance(parsed, list) else parsed
    return plan(PlanRequest(recipe, BASES[base]()).changed(settings))


def counts(config: PreTrainedConfig) -> tuple[int, int]:
    """Weights of the linear layers of a Llama or Qwen2, and all other parameters.

    >>> sum(counts(BASES["llama-2-7b"]()))
    6738415616
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    keys = hidden // config.num_attention_heads * config.num_key_value_heads
    linear = layers * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * config.intermediate_size)
    tables = config.vocab_size * hidden * (1 if config.tie_word_embeddings else 2)
    biases = layers * (hidden + 2 * keys) if config.model_type == "qwen2" else 0
    return linear, tables + biases + (2 * layers + 1) * hidden


def write_bases(folder: Path) -> None:
    """For each base a folder with its configuration and a recipe; there are no weights."""
    for name, make in BASES.items():
        base = folder / name
        base.mkdir(parents=True, exist_ok=True)
        make().save_pretrained(base)
        recipe = {**RECIPE, "model": {"base_model": str(base.resolve())}}
        (base / "recipe.yaml").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
