"""Memory while a base is loaded, where that can be more than a step: experts are fused and packed weight by weight."""

from __future__ import annotations

from qlora_cli.model.experts.packed import expert_parameters
from qlora_cli.model.experts.wanted import quantizes_experts
from qlora_cli.plan.trace.fake_model import skeleton
from qlora_cli.plan.trace.live_memory import MemoryKind
from qlora_cli.plan.trace.request import PlanRequest
from qlora_cli.plan.trace.timeline import MemoryTrace

COPIES = 2
"""Of one fused weight in 16 bit at a time: the experts as the files hold them, and what they are fused into."""

BASE = (MemoryKind.BASE_QUANTIZED, MemoryKind.QUANTIZATION_CONSTANTS, MemoryKind.BASE_16BIT)


def loading_bytes(request: PlanRequest, trace: MemoryTrace) -> int:
    """Bytes of tensors on the device while the last experts are packed, at most; 0 where none are.

    Without experts a weight is packed as small as it is read, and any step holds more than loading does.

    Args:
        trace: the recipe's step, which begins with the whole base in place.
    """
    if not quantizes_experts(request.recipe.quantization, request.config):
        return 0
    weights = [module.get_parameter(name) for _, module, name in expert_parameters(skeleton(request))]
    largest = max((weight.numel() * weight.element_size() for weight in weights), default=0)
    if not largest:
        return 0
    return sum(trace.at(0).by_kind.get(kind, 0) for kind in BASE) + COPIES * largest
