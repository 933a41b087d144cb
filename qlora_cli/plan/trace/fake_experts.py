"""Experts in 4 bit in a model without values: marked on the meta device, packed when the model is made of fake tensors.

In between PEFT attaches its adapter, which must see the weights in their own shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from qlora_cli.model.experts.attaching import let_wrappers_update
from qlora_cli.model.experts.loading import experts_to_quantize
from qlora_cli.model.experts.packed import install, pack
from qlora_cli.model.experts.wanted import no_experts
from qlora_cli.recipe.schema import QuantizationSection, Recipe

_MARK = "is_packed_when_loaded"


def mark_experts(base: nn.Module, kept: list[str], *, double_quant: bool) -> None:
    """Mark the fused weights on the meta device that loading would quantize.

    Args:
        kept: names of modules that stay as they are.
        double_quant: the constants of their blocks are quantized too.
    """
    for _, module, name in experts_to_quantize(base, kept):
        setattr(module.get_parameter(name), _MARK, double_quant)


def is_marked(parameter: nn.Parameter) -> bool:
    """Whether `mark_experts` has marked it."""
    return hasattr(parameter, _MARK)


def is_doubly_quantized(parameter: nn.Parameter) -> bool:
    """Whether the constants of a marked weight are quantized too."""
    return bool(getattr(parameter, _MARK))


def refuse_experts_to_come(base: nn.Module, recipe: Recipe) -> None:
    """Refuse a recipe that asks for experts in 4 bit of a base that has none, as loading does.

    Raises:
        RecipeError: which says so.
    """
    is_asked = recipe.quantization is not None and recipe.quantization.experts
    if is_asked and not any(is_marked(parameter) for parameter in base.parameters()):
        raise no_experts(recipe.model.base_model)


def pack_marked(model: nn.Module, quantization: QuantizationSection | None) -> Iterator[Any]:
    """Replace each marked weight by fake packed ones, which are given back, and let adapters on them work."""
    if quantization is None:
        return
    marked = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if is_marked(parameter)
    ]
    for module, name, parameter in marked:
        whole = torch.empty(parameter.shape, dtype=parameter.dtype)
        packed = pack(whole, quant_type=quantization.quant_type, double_quant=quantization.double_quant is not False)
        install(module, name, packed)
        yield packed
    let_wrappers_update(model)
