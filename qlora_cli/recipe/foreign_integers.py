"""Integers that others store, by what config.json says of them: whether their codes can be taken over, and if not, why.

Two forms: W4A16 of compressed-tensors (`pack-quantized`, which llm-compressor writes and vLLM runs), and GPTQ of
gptqmodel and AutoGPTQ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

COMPRESSED_TENSORS, GPTQ = "compressed-tensors", "gptq"

WHOLE_ROW = -1
"""Of `group_size`: a row has one scale."""

GROUP_SIZES = (WHOLE_ROW, 32, 64, 128)
BITS = (4, 3, 2)
GPTQ_FORMATS = ("gptq", "gptq_v2")
SORTED_AFTERWARDS = ("group", "dynamic")
"""Values of `actorder` with which neighbours do not share a scale; `weight` and `static` leave groups as they are."""


def weights_of_group(group_size: int, num_inputs: int) -> int:
    """Weights of a row that share a scale, where `group_size` may stand for all of them.

    >>> weights_of_group(32, 256), weights_of_group(WHOLE_ROW, 256)
    (32, 256)
    """
    return num_inputs if group_size == WHOLE_ROW else group_size


@dataclass(frozen=True)
class ForeignIntegers:
    """How a base of others stores its integers."""

    bits: int | None
    group_size: int | None
    obstacle: str | None
    """Why its codes cannot be taken over; None where they can."""


def integers_of(method: str, section: Mapping[str, Any]) -> ForeignIntegers | None:
    """What a `quantization_config` says; None for another method than the two.

    >>> integers_of("gptq", {"bits": 4, "group_size": 128, "desc_act": True}).obstacle
    'desc_act: its columns are sorted, and neighbours do not share a scale'
    """
    if method == COMPRESSED_TENSORS:
        return _of_compressed_tensors(section)
    return _of_gptq(section) if method == GPTQ else None


def _of_compressed_tensors(section: Mapping[str, Any]) -> ForeignIntegers:
    groups = [group for group in (section.get("config_groups") or {}).values() if isinstance(group, Mapping)]
    weights = [dict(group.get("weights") or {}) for group in groups]
    first = weights[0] if weights else {}
    strategy, size = first.get("strategy"), first.get("group_size")
    group_size = WHOLE_ROW if strategy == "channel" or (strategy == "group" and size == WHOLE_ROW) else size
    bits = first.get("num_bits")
    return ForeignIntegers(bits, group_size, _obstacle_in_compressed(section, groups, weights, group_size))


def _obstacle_in_compressed(
    section: Mapping[str, Any], groups: list[Mapping[str, Any]], weights: list[dict[str, Any]], group_size: object
) -> str | None:
    if not weights:
        return "it does not say how its weights are stored"
    first, layout = weights[0], section.get("format")
    layouts = {group.get("format") or layout for group in groups}
    checks = [
        (layouts != {"pack-quantized"}, f"its format is {layout}, and not pack-quantized"),
        (any(each != first for each in weights[1:]), "its layers are stored in several ways"),
        (first.get("type") != "int" or first.get("num_bits") != BITS[0], "its weights are not 4-bit integers"),
        (first.get("symmetric") is not True, "it has zero points"),
        (first.get("actorder") in SORTED_AFTERWARDS, "actorder: its columns are sorted"),
        (first.get("strategy") not in ("group", "channel"), f"its strategy is {first.get('strategy')}"),
        (group_size not in GROUP_SIZES, f"its groups are of {group_size} weights, and not of 32, 64 or 128"),
        (any(group.get("input_activations") for group in groups), "it rounds activations too"),
        (bool(section.get("kv_cache_scheme")), "it rounds keys and values too"),
        (bool(section.get("transform_config")), "it transforms its inputs"),
        (_is_sparse(section.get("sparsity_config")), "its weights are sparse"),
    ]
    return next((text for is_so, text in checks if is_so), None)


def _is_sparse(settings: object) -> bool:
    return isinstance(settings, Mapping) and settings.get("format", "dense") != "dense"


def _of_gptq(section: Mapping[str, Any]) -> ForeignIntegers:
    bits, group_size = section.get("bits"), section.get("group_size")
    layout = section.get("checkpoint_format") or section.get("format") or "gptq"
    dynamic = section.get("dynamic") or {}
    is_sorted = section.get("desc_act") is True and section.get("static_groups") is not True
    checks = [
        (bits not in BITS, f"it has {bits} bits, and not 4, 3 or 2"),
        (group_size not in GROUP_SIZES, f"its groups are of {group_size} weights, and not of 32, 64 or 128"),
        (is_sorted, "desc_act: its columns are sorted, and neighbours do not share a scale"),
        (layout not in GPTQ_FORMATS, f"its format is {layout}, and not gptq or gptq_v2"),
        (section.get("is_marlin_format") is True, "its format is marlin, and not gptq or gptq_v2"),
        (section.get("pack_dtype", "int32") not in ("int32", "torch.int32"), "its codes are not packed in int32"),
        (any(not str(name).startswith("-") for name in dynamic), "dynamic: its layers are stored in several ways"),
    ]
    obstacle = next((text for is_so, text in checks if is_so), None)
    return ForeignIntegers(bits, group_size, obstacle)
