"""Memory while a base is loaded, where that can be more than a step.

Experts are fused and packed weight by weight; of a base that is stored in FP8 or the like, one weight at a time is
unpacked. A base that is rounded on the run's rows is loaded once as it was before.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import bitsandbytes as bnb
from torch import nn

from qlora_cli.constants import GIB
from qlora_cli.model.experts.packed import expert_parameters
from qlora_cli.model.experts.wanted import quantizes_experts
from qlora_cli.model.integer.calibrated import block_of
from qlora_cli.model.integer.layers import layers_to_round
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

    Of a base that is dequantized, while its largest weight is unpacked; of one that is rounded on the run's rows, while
    that is done. Without any of them a weight is packed as small as it is read, and any step holds more than loading.

    Args:
        trace: the recipe's step, which begins with the whole base in place.
    """
    if request.recipe.is_base_calibrated:
        return calibration_peak(request).num_bytes
    if is_unpacked(request.recipe):
        return loading_peak(meta_model(request)).num_bytes
    if not quantizes_experts(request.recipe.quantization, request.config):
        return 0
    weights = [module.get_parameter(name) for _, module, name in expert_parameters(skeleton(request))]
    largest = max((weight.numel() * weight.element_size() for weight in weights), default=0)
    if not largest:
        return 0
    return sum(trace.at(0).by_kind.get(kind, 0) for kind in BASE) + COPIES * largest


def why_loading(request: PlanRequest) -> str:
    """Where the bytes of `loading_bytes` are from."""
    if request.recipe.is_base_calibrated:
        return "the plain base, rounded on the run's rows"
    return "two copies of one fused weight in 16 bit"


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


@dataclass(frozen=True)
class CalibrationPeak:
    """Bytes on the device while a base is rounded on the run's rows, at the most."""

    plain_bytes: int
    """All of the base as it is computed before that."""

    moments_bytes: int
    """Second moments of the inputs of one block's layers, as if no two shared an input."""

    working_bytes: int
    """What rounding one layer takes beside them, or a row on its way, or a stored weight that is unpacked."""

    @property
    def num_bytes(self) -> int:
        """All of it together."""
        return self.plain_bytes + self.moments_bytes + self.working_bytes

    def __str__(self) -> str:
        return (
            f"quantization.calibration: before the first step the base is loaded as it is and rounded on the run's "
            f"rows, which takes up to {self.num_bytes / GIB:,.2f} GiB: {self.plain_bytes / GIB:,.2f} for the base, "
            f"{self.moments_bytes / GIB:,.2f} for the inputs of one block, and the rest while a layer is rounded."
        )


def calibration_peak(request: PlanRequest) -> CalibrationPeak:
    """The peak of `model/integer/calibrated.py`.

    A layer [O, I] is rounded with five matrices [I, I] in float32 while their factor is made, then with one of them,
    the weight twice in float32 and its codes. On the way through a rounded layer its weight is unpacked.
    """
    recipe = request.recipe
    assert recipe.quantization is not None
    choice = layers_to_round(recipe.model, recipe.quantization, request.config)
    moments: Counter[str] = Counter()
    features: Counter[str] = Counter()
    working = 0
    for name in choice.rounded:
        num_outputs, num_inputs = choice.skeleton.get_parameter(f"{name}.weight").shape
        moment = 4 * num_inputs**2
        moments[block_of(name)] += moment
        features[block_of(name)] += num_inputs + num_outputs
        working = max(working, 5 * moment, moment + 14 * num_outputs * num_inputs)
    working = max(working, recipe.data.max_length * max(features.values()) * request.dtype.itemsize)
    weights = list(skeleton(request).parameters())
    if recipe.model.dequantize:
        working = max(working, UNPACKING_BYTES * max(weight.numel() for weight in weights))
    plain = sum(weight.numel() * weight.element_size() for weight in weights)
    return CalibrationPeak(plain, max(moments.values()), working)
