"""Disk space of a run, computed to the byte except for its small files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from qlora_cli.errors import IdentityError
from qlora_cli.model.fingerprint import weight_files
from qlora_cli.model.integer.bytes_of import FLOAT16_BYTES, FLOAT32_BYTES, integer_bytes
from qlora_cli.recipe.base_files import cached_base, config_here
from qlora_cli.recipe.foreign_integers import GPTQ
from qlora_cli.recipe.schema import Recipe, TrainingSection
from qlora_cli.recipe.stored_weights import stored_weights

EIGHT_BIT_FROM = 4096
"""Elements from which bitsandbytes keeps a parameter's moments in 8 bit."""

BLOCK = 256
"""Elements of a moment that share one float32 (arXiv:2110.02861)."""

CODE_MAPS_BYTES = 2 * 256 * 4
"""The signed and the unsigned map of 8-bit moments, which a checkpoint holds once a parameter."""

STEP_BYTES = 4
"""torch's AdamW counts the steps of each parameter."""


@dataclass(frozen=True)
class TrainedTensor:
    """Facts of a trained tensor that decide the size of its files."""

    num_elements: int
    element_bytes: int


@dataclass(frozen=True)
class Disk:
    """Bytes that a run writes."""

    adapter_bytes: int
    checkpoint_bytes: int
    """Of one checkpoint."""

    num_checkpoints: int
    """Largest number at a time: those that are kept and the one that is being written."""

    merged_bytes: int
    """Of the merged model: as large as its base, in 16 bit where that is packed or not on this machine; in integers
    where the update goes into their offsets."""

    integer_bytes: int = 0
    """Of the base in integers, which lies in the cache; 0 where none is made."""

    @property
    def checkpoints_bytes(self) -> int:
        """Of all checkpoints that are on disk together."""
        return self.num_checkpoints * self.checkpoint_bytes


def disk_of(recipe: Recipe, trained: Iterable[TrainedTensor], num_base: int, num_integers: int = 0) -> Disk:
    """Disk space of a run of the recipe.

    Args:
        recipe: how often it saves, and with which optimizer.
        trained: every trained tensor.
        num_base: parameters of the base as it is loaded, which may leave parts of its files out.
        num_integers: how many of them are weights in our integers.
    """
    tensors = list(trained)
    adapter = sum(tensor.num_elements * tensor.element_bytes for tensor in tensors)
    state = sum(state_bytes(recipe.training.optim, tensor.num_elements) for tensor in tensors)
    base = plain_bytes(recipe.model.base_model, recipe.model.revision)
    merged, made = base or 2 * num_base, 0
    quantization = recipe.quantization
    if quantization is not None and quantization.is_in_integers:
        config = config_here(recipe.model.base_model, recipe.model.revision) or {}
        others = merged - num_integers * _bytes_of_weight(config) if base else 2 * (num_base - num_integers)
        stored = stored_weights(config)
        if stored is None or not stored.is_in_integers:
            offset_bytes = FLOAT32_BYTES if stored is not None and stored.method == GPTQ else FLOAT16_BYTES
            made = others + integer_bytes(quantization, num_integers, offset_bytes)
        if recipe.lora.use_qalora:
            merged = others + integer_bytes(quantization, num_integers, FLOAT32_BYTES)
    return Disk(adapter, adapter + state, num_checkpoints(recipe.training), merged, made)


def _bytes_of_weight(config: Mapping[str, Any]) -> int:
    text = config.get("text_config")
    named = [part.get("dtype") or part.get("torch_dtype") for part in (config, text) if isinstance(part, Mapping)]
    return FLOAT32_BYTES if "float32" in named else FLOAT16_BYTES


def plain_bytes(base_model: str, revision: str | None) -> int | None:
    """Bytes of a base's weights on this machine, those included that no class loads; None if packed or not here."""
    folder = Path(base_model) if Path(base_model).is_dir() else cached_base(base_model, revision)
    if folder is None or stored_weights(config_here(base_model, revision) or {}) is not None:
        return None
    try:
        return sum(path.stat().st_size for path in weight_files(folder))
    except (IdentityError, OSError):
        return None


def state_bytes(optim: str, num_elements: int) -> int:
    """Bytes in a checkpoint of what the optimizer keeps of one tensor: two moments, whether paged or not.

    >>> state_bytes("adamw_torch", 100), state_bytes("paged_adamw_8bit", 100), state_bytes("adamw_8bit", 8192)
    (804, 800, 18688)
    """
    if not optim.endswith("8bit"):
        return 8 * num_elements + (STEP_BYTES if optim.startswith("adamw_torch") else 0)
    if num_elements < EIGHT_BIT_FROM:
        return 8 * num_elements
    return 2 * num_elements + 2 * 4 * ceil(num_elements / BLOCK) + CODE_MAPS_BYTES


def num_checkpoints(training: TrainingSection) -> int:
    """Checkpoints that are on disk together.

    >>> num_checkpoints(TrainingSection(save_strategy="steps", save_steps=10, max_steps=100, save_total_limit=3))
    4
    >>> num_checkpoints(TrainingSection(num_train_epochs=1)), num_checkpoints(TrainingSection(save_strategy="no"))
    (1, 1)
    >>> num_checkpoints(TrainingSection(save_strategy="no", load_best_model_at_end=True))
    4
    """
    most = training.save_total_limit + 1
    if training.load_best_model_at_end:  # the best one stays too, and each new best is saved whatever the strategy
        return most + 1
    if training.save_strategy == "no":
        return 1
    if training.save_strategy == "steps" and training.max_steps and training.save_steps:
        return min(most, ceil(training.max_steps / training.save_steps))
    if training.save_strategy == "epoch" and training.max_steps is None:
        return min(most, ceil(training.epochs))
    return most
