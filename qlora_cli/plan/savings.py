"""Savings for a step that does not fit: each setting with the bytes that it saves, largest first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from shlex import quote
from typing import Any

import torch
from torch import nn

from qlora_cli.constants import AMPERE
from qlora_cli.model.experts.packed import expert_parameters
from qlora_cli.model.linear_layers import is_linear
from qlora_cli.plan.trace.fake_model import skeleton
from qlora_cli.plan.trace.request import PlanRequest
from qlora_cli.plan.trace.stages import decoder_layers
from qlora_cli.plan.trace_cache import Tracer
from qlora_cli.progress import progress
from qlora_cli.recipe.schema import QuantizationSection
from qlora_cli.recipe.stored_weights import stored_weights

SMALLEST_LENGTH = 256


@dataclass(frozen=True)
class MemorySaving:
    """One change of the recipe."""

    what: str
    """In words, with what it costs."""

    settings: dict[str, Any]
    saved_bytes: int

    @property
    def override(self) -> str:
        """The options to add to a command line.

        >>> MemorySaving("", {"lora.r": 8, "lora.target_modules": ("q_proj", "v_proj")}, 0).override
        "--set lora.r=8 --set 'lora.target_modules=[q_proj,v_proj]'"
        """
        return " ".join(f"--set {quote(f'{key}={_as_yaml(value)}')}" for key, value in self.settings.items())


def _as_yaml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


def rank_savings(request: PlanRequest, tracer: Tracer | None = None) -> list[MemorySaving]:
    """Every change that saves memory, by what it saves when it alone is made.

    Raises:
        RecipeError: if the base cannot be built.
    """
    tracer = tracer or Tracer()
    now = tracer.device_bytes(request)
    savings = []
    tried = list(changes(request))
    with progress("trying what saves memory", len(tried)) as phase:
        for what, settings in tried:
            saved = now - tracer.device_bytes(_with(request, settings))
            if saved > 0:
                savings.append(MemorySaving(what, settings, saved))
            phase.advance()
    return sorted(savings, key=lambda saving: saving.saved_bytes, reverse=True)


def _with(request: PlanRequest, settings: dict[str, Any]) -> PlanRequest:
    if request.recipe.quantization is None and "quantization.quant_type" in settings:
        recipe = request.recipe.model_copy(update={"quantization": QuantizationSection()})
        request = PlanRequest(recipe, request.config, request.device)
    return request.changed(settings)


def changes(request: PlanRequest) -> Iterator[tuple[str, dict[str, Any]]]:
    """Changes that may save memory, each in words with its recipe keys."""
    yield from _changes_of_storage(request)
    yield from _changes_of_adapter(request)
    recipe = request.recipe
    training = recipe.training
    if not training.gradient_checkpointing:
        yield "recompute activations in backward, up to half more time", {"training.gradient_checkpointing": True}
    if not training.activation_offloading and request.device.kind == "cuda":
        yield "activations in host memory until backward, transfers cost time", {"training.activation_offloading": True}
    batch, accumulation = training.rows_at_once, training.num_passes
    if batch > 1:
        factor = batch if batch % 2 else 2
        yield (
            "fewer rows a pass, the same rows a step",
            {
                "training.per_device_train_batch_size": batch // factor,
                "training.gradient_accumulation_steps": accumulation * factor,
            },
        )
    if recipe.data.max_length >= 2 * SMALLEST_LENGTH:
        yield "shorter rows; what is longer must be cut or left out", {"data.max_length": recipe.data.max_length // 2}
    on_ampere = request.device.kind == "cuda" and request.device.capability >= AMPERE
    if recipe.model.attn_implementation != "flash_attention_2" and request.has_mask and on_ampere:
        what = "attention by document bounds instead of a dense mask; needs the package flash-attn"
        yield what, {"model.attn_implementation": "flash_attention_2"}


def _changes_of_storage(request: PlanRequest) -> Iterator[tuple[str, dict[str, Any]]]:
    quantization, optim = request.recipe.quantization, request.recipe.training.optim
    stored = stored_weights(request.config.to_dict())
    if (stored is not None and stored.is_trained_as_stored) or (quantization and quantization.is_in_integers):
        pass  # the base decides it, or what the adapter is for
    elif quantization is None or quantization.is_int8:
        yield "store the base in 4 bit", {"quantization.quant_type": "nf4"}
    elif quantization.double_quant is False:
        yield "quantize the block constants too, 0.37 bit a weight", {"quantization.double_quant": True}
    is_16_bit = quantization is not None and quantization.experts is False and not quantization.is_int8
    if is_16_bit and any(expert_parameters(skeleton(request))):
        yield "store the experts in 4 bit too", {"quantization.experts": True}
    if request.device.kind == "cuda" and optim != "paged_adamw_8bit":
        yield "optimizer state in 8 bit, moved to the host when the GPU is full", {"training.optim": "paged_adamw_8bit"}
    elif optim not in ("paged_adamw_8bit", "adamw_8bit"):
        yield "optimizer state in 8 bit", {"training.optim": "adamw_8bit"}


def _changes_of_adapter(request: PlanRequest) -> Iterator[tuple[str, dict[str, Any]]]:
    lora = request.recipe.lora
    if lora.r >= 16:
        yield "half the rank", {"lora.r": lora.r // 2}
    attention = attention_names(skeleton(request))
    if attention and lora.target_modules == "all-linear":
        yield "adapters on attention only, which learn less", {"lora.target_modules": attention}
    if lora.autocast_adapter_dtype and request.dtype is torch.bfloat16:
        yield "adapters in 16 bit, coarser updates", {"lora.autocast_adapter_dtype": False}


def attention_names(base: nn.Module) -> tuple[str, ...]:
    """Last parts of the names of the linear modules of a layer's attention, in their order."""
    layers = decoder_layers(base)
    if not layers:
        return ()
    paths = [name for name, module in layers[-1].named_modules() if is_linear(module)]
    return tuple(name.split(".")[-1] for name in paths if "attn" in name or "attention" in name)
