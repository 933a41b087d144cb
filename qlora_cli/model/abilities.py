"""What a base and its adapters let an engine compute together, found out before the first request."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Embedding, Linear
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from qlora_cli.model.adapter_kind import AdapterKind
from qlora_cli.model.integer.adapter import IntegerLoraLinear

PROBE_ROWS, PROBE_TOKENS = 3, 2
"""Shape of the batch that is sent through the model to see which of its layers get whole rows."""

MIXABLE_LAYERS = {Linear, Embedding, IntegerLoraLinear}
"""Layers that add B A to what the base gives, and so can do it for each row apart. PEFT's for 4 and 8 bit are told by
their names."""

MIXABLE_NAMES = {"Linear4bit", "Linear8bitLt"}


@dataclass(frozen=True)
class Abilities:
    """What can be computed together. Adapters are called by their names in PEFT; None is the base."""

    is_joinable: bool
    """Whether the cache is keys and values of every token alone, so that those of several rows can be stacked."""

    mixed: frozenset[str | None]
    """Adapters whose rows may stand in one batch with rows of the others."""

    recomputed: frozenset[str | None]
    """Adapters that put something before the prompt: every token is computed from the whole text."""

    cache_bytes_per_token: int
    """Bytes of keys and values of one token; 0 where the cache is no such thing."""


def find_abilities(
    model: PeftModel | PreTrainedModel, kinds: Mapping[str, AdapterKind], *, has_base: bool
) -> Abilities:
    """Look at the configuration, then send three short rows through the model and look at what its layers get.

    Args:
        model: the base with its adapters, in eval mode.
        kinds: what each adapter is, by its name in PEFT.
        has_base: whether the base itself answers too.
    """
    recomputed = frozenset(name for name, kind in kinds.items() if is_before_the_prompt(kind))
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not _has_plain_cache(base) or (recomputed and len(kinds) == len(recomputed) and not has_base):
        return Abilities(False, frozenset(), recomputed, 0)
    cache, whole = _probe(model, base)
    if not _is_stacked(cache):
        return Abilities(False, frozenset(), recomputed, 0)
    sizes = [layer.keys.nbytes + layer.values.nbytes for layer in cache.layers]
    mixed: set[str | None] = {name for name, kind in kinds.items() if _is_plain(model, name, kind, whole)}
    if mixed and has_base:
        mixed.add(None)
    return Abilities(True, frozenset(mixed), recomputed, sum(sizes) // (PROBE_ROWS * PROBE_TOKENS))


def is_before_the_prompt(kind: AdapterKind) -> bool:
    """Whether the method adds virtual tokens or keys, whose place in the cache only PEFT's own `generate` knows."""
    return kind.is_prompt or kind.method == "ADAPTION_PROMPT"


def _has_plain_cache(base: PreTrainedModel) -> bool:
    """Whether every layer attends to single tokens, all of them or a sliding window of them.

    A window is kept whole here and cut by the mask, as the mask of a cache that keeps all tokens does. Layers that
    attend in chunks count from the first column, which in a batch is padding.
    """
    taken = inspect.signature(base.forward).parameters
    if not {"position_ids", "past_key_values", "attention_mask"} <= taken.keys():
        return False
    config = base.config.get_text_config()
    if getattr(config, "attention_chunk_size", None) or getattr(config, "num_kv_shared_layers", None):
        return False
    layers = DynamicCache(config=base.config).layers
    return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def _is_stacked(cache: Any) -> bool:
    return isinstance(cache, DynamicCache) and all(
        type(layer) is DynamicLayer
        and layer.is_initialized
        and layer.keys.dim() == layer.values.dim() == 4
        and layer.keys.shape[0] == layer.values.shape[0] == PROBE_ROWS
        and layer.keys.shape[2] == layer.values.shape[2] == PROBE_TOKENS
        for layer in cache.layers
    )


@torch.no_grad()
def _probe(model: PeftModel | PreTrainedModel, base: PreTrainedModel) -> tuple[Any, set[nn.Module]]:
    """The cache after a pass of three rows, and the adapters' layers that were given whole rows.

    The experts of a mixture get tokens in an order of their own, and a router gets them all in one row: there a token
    would get another row's adapter.
    """
    shapes: dict[nn.Module, list[tuple[int, ...]]] = {}
    layers = _lora_layers(model)
    handles = [layer.register_forward_pre_hook(partial(_note_shape, shapes)) for layer in layers]
    ids = torch.zeros((PROBE_ROWS, PROBE_TOKENS), dtype=torch.long, device=base.device)
    cache = DynamicCache()
    try:
        base(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, use_cache=True)
    finally:
        for handle in handles:
            handle.remove()
    rows = (PROBE_ROWS, PROBE_TOKENS)
    return cache, {layer for layer, seen in shapes.items() if all(shape[:2] == rows for shape in seen)}


def _note_shape(shapes: dict[nn.Module, list[tuple[int, ...]]], layer: nn.Module, args: tuple[Any, ...]) -> None:
    shapes.setdefault(layer, []).append(tuple(args[0].shape) if args else ())


def _is_plain(model: PeftModel | PreTrainedModel, name: str, kind: AdapterKind, whole: set[nn.Module]) -> bool:
    """Whether all of this adapter is B A in layers that are given whole rows."""
    assert isinstance(model, PeftModel)
    config = model.peft_config[name]
    is_lora = kind.method == "LORA" and kind.variant is None and not getattr(config, "use_dora", False)
    replaces = bool(kind.modules_to_save) or bool(kind.trainable_token_indices)
    own = layers_of(model, {name})
    return is_lora and not replaces and bool(own) and all(layer in whole and _takes_rows(layer) for layer in own)


def layers_of(model: nn.Module, adapters: Collection[str | None]) -> list[LoraLayer]:
    """Layers of PEFT that hold one of the adapters."""
    return [
        layer for layer in _lora_layers(model) if (layer.lora_A.keys() | layer.lora_embedding_A.keys()) & {*adapters}
    ]


def _lora_layers(model: nn.Module) -> list[LoraLayer]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def _takes_rows(layer: LoraLayer) -> bool:
    return type(layer) in MIXABLE_LAYERS or type(layer).__name__ in MIXABLE_NAMES
