"""Storages that a model and its optimizer hold from the start of a step to its end, each with its kind."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import nn

from qlora_cli.model.integer.linear import IntegerLinear
from qlora_cli.plan.trace.live_memory import LiveMemory, MemoryKind
from qlora_cli.plan.trace.optimizers import is_paged
from qlora_cli.plan.trace.request import PlanRequest
from qlora_cli.plan.trace.stages import decoder_layers


def count_model(memory: LiveMemory, model: PeftModel) -> None:
    """Count every parameter, its quantization's constants, its gradient where it has one, and every buffer."""
    layer_of = _layers_by_module(model)
    for module in model.modules():
        layer = layer_of.get(module)
        for parameter in module._parameters.values():
            if parameter is not None:
                _settle_parameter(memory, parameter, layer)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                memory.settle(buffer, _kind_of_buffer(module, name), layer)


def _kind_of_buffer(module: nn.Module, name: str) -> MemoryKind:
    if not isinstance(module, IntegerLinear):
        return MemoryKind.BASE_16BIT
    return MemoryKind.BASE_QUANTIZED if name == "codes" else MemoryKind.QUANTIZATION_CONSTANTS


def _settle_parameter(memory: LiveMemory, parameter: Any, layer: int | None) -> None:
    state = getattr(parameter, "quant_state", None)
    row_scale = getattr(parameter, "SCB", None)
    if parameter.requires_grad:
        memory.settle(parameter, MemoryKind.ADAPTER, layer)
        if parameter.grad is not None:
            memory.settle(parameter.grad, MemoryKind.GRADIENTS, layer)
    elif state is None and row_scale is None:
        memory.settle(parameter, MemoryKind.BASE_16BIT, layer)
    else:
        memory.settle(parameter, MemoryKind.BASE_QUANTIZED, layer)
    constants = [] if row_scale is None else [row_scale]
    if state is not None:
        constants = [state.absmax, state.code]
        if state.nested:
            constants += [state.offset, state.state2.absmax, state.state2.code]
    for tensor in constants:
        memory.settle(tensor, MemoryKind.QUANTIZATION_CONSTANTS, layer)


def count_optimizer(
    memory: LiveMemory, model: PeftModel, request: PlanRequest, optimizer: torch.optim.Optimizer
) -> None:
    """Count what the first step has made as there from the start, as it is in every later step.

    torch's AdamW counts its steps in host memory unless it is fused.
    """
    layer_of: dict[torch.Tensor, int] = {
        parameter: layer for module, layer in _layers_by_module(model).items() for parameter in module.parameters()
    }
    counts_on_host = request.device.kind == "cuda" and request.recipe.training.optim != "adamw_torch_fused"
    for parameter, state in optimizer.state.items():
        for name, tensor in state.items():
            if not isinstance(tensor, torch.Tensor):
                continue
            if name == "step" and counts_on_host:
                memory.forget(tensor)
                continue
            is_on_host = name in ("state1", "state2") and is_paged(request, parameter)
            is_shared = name.startswith("qmap")
            kind = MemoryKind.PAGED_OPTIMIZER if is_on_host else MemoryKind.OPTIMIZER
            memory.settle(tensor, kind, None if is_shared else layer_of.get(parameter))


def _layers_by_module(model: PeftModel) -> dict[nn.Module, int]:
    return {module: index for index, layer in enumerate(decoder_layers(model)) for module in layer.modules()}
