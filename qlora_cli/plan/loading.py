"""Memory while a base is loaded, where that can be more than a step.

Experts are fused and packed weight by weight; of a base that is stored in FP8 or the like, one weight at a time is
unpacked.
"""

from __future__ import annotations

from dataclasses import dataclass

import bitsandbytes as bnb
from torch import nn

from qlora_cli.constants import GIB
from qlora_cli.model.experts.packed import expert_parameters
from qlora_cli.model.experts.wanted import quantizes_experts
from qlora_cli.plan.trace.fake_experts import is_doubly_quantized, is_marked
from qlora_cli.plan.trace.fake_model import meta_model, skeleton
from qlora_cli.plan.trace.live_memory import MemoryKind
from qlora_cli.plan.trace.request import PlanRequest
from qlora_cli.plan.trace.timeline import MemoryTrace
from qlora_cli.recipe.schema import Recipe

COPIES = 2
"""Of one fused weight in 16 bit at a time: the experts as the files hold them, and what they are fused into."""

BASE = (MemoryKind.BASE_QUANTIZED, MemoryKind.QUANTIZATION_CONSTANTS, MemoryKind.BASE_16BIT)


def loading_bytes(request: PlanRequest, trace: MemoryTrace) -> int:
    """Bytes of tensors on the device while the last experts are packed, at most; 0 where none are.

    Of a base that is dequantized, while its largest weight is unpacked. Without either a weight is packed as small as
    it is read, and any step holds more than loading does.

    Args:
        trace: the recipe's step, which begins with the whole base in place.
    """
    if is_unpacked(request.recipe):
        return loading_peak(meta_model(request)).num_bytes
    if not quantizes_experts(request.recipe.quantization, request.config):
        return 0
    weights = [module.get_parameter(name) for _, module, name in expert_parameters(skeleton(request))]
    largest = max((weight.numel() * weight.element_size() for weight in weights), default=0)
    if not largest:
        return 0
    return sum(trace.at(0).by_kind.get(kind, 0) for kind in BASE) + COPIES * largest


def is_unpacked(recipe: Recipe) -> bool:
    """Whether weights become plain while the model is loaded; a base in integers is made before, weight by weight."""
    return recipe.model.dequantize and (recipe.quantization is None or not recipe.quantization.is_in_integers)


UNPACKING_BYTES = 11
"""A parameter, while the operations of transformers 5.23 unpack it to bfloat16: 1 or less as it is stored, and at the
highest 10 more for FP8 and 9.6 for MXFP4 (rise of a process's resident memory, weights of 34 million parameters)."""

BLOCK = 64
NESTED_BLOCK = 256


@dataclass(frozen=True)
class LoadingPeak:
    """Bytes on the device while the base is loaded, at the most."""

    resting_bytes: int
    """The base as it is kept."""

    num_unpacked: int
    """Parameters of its largest weight."""

    @property
    def num_bytes(self) -> int:
        """All of it, with the largest weight being unpacked last."""
        return self.resting_bytes + UNPACKING_BYTES * self.num_unpacked

    def __str__(self) -> str:
        return (
            f"model.dequantize: loading, before the first step, takes up to {self.num_bytes / GIB:,.2f} GiB: "
            f"{self.resting_bytes / GIB:,.2f} for the base as it is kept, and the rest while its largest weight, of "
            f"{self.num_unpacked:,} parameters, is unpacked."
        )


def loading_peak(model: nn.Module) -> LoadingPeak:
    """The peak of a model on the meta device, its quantized weights in their original shape."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    return LoadingPeak(sum(map(kept_bytes, frozen)), max(parameter.numel() for parameter in frozen))


def kept_bytes(parameter: nn.Parameter) -> int:
    """Bytes of a parameter at rest, with the constants of its blocks.

    >>> import torch
    >>> kept_bytes(nn.Parameter(torch.empty(64, 64, dtype=torch.bfloat16)))
    8192
    """
    size = parameter.numel()
    if isinstance(parameter, bnb.nn.Int8Params):
        return size + 4 * parameter.shape[0]
    if isinstance(parameter, bnb.nn.Params4bit):
        is_double = parameter.compress_statistics
    elif is_marked(parameter):
        is_double = is_doubly_quantized(parameter)
    else:
        return size * parameter.element_size()
    num_blocks = -(-size // BLOCK)
    constants = num_blocks + 4 * -(-num_blocks // NESTED_BLOCK) if is_double else 4 * num_blocks
    return size // 2 + constants
