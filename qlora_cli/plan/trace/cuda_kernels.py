"""Makes CPU operators allocate what CUDA's would, so that a trace on CPU tensors predicts a CUDA step.

A trace runs on fake CPU tensors: a torch built without CUDA cannot even slice fake CUDA ones. Four things would differ
and are replaced: attention (`plan/trace/cuda_attention.py`); dropout, which on CUDA keeps one byte an element;
autocast, whose list of float32 operators is longer on CUDA; and the int8 product. Kernels also allocate inside, where
no dispatch mode sees it: `workspaces` has the rules.

    M = tokens, N = output features, K = input features
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from qlora_cli.plan.machine.device import Device
from qlora_cli.plan.trace.cuda_attention import CUDA_ATTENTION_WORKSPACES, cuda_attention
from qlora_cli.plan.trace.live_memory import MemoryKind, Workspace
from qlora_cli.plan.trace.request import PlanRequest

FLOAT32_ON_CUDA = frozenset(
    {
        functional.layer_norm,
        functional.rms_norm,
        functional.group_norm,
        functional.softplus,
        *(getattr(torch, name) for name in ("pow", "exp", "log", "rsqrt", "reciprocal", "cumsum", "cumprod", "norm")),
        *(getattr(torch, name) for name in ("sum", "prod", "softmax", "log_softmax", "logsumexp")),
        *(getattr(torch.Tensor, name) for name in ("pow", "__pow__", "exp", "log", "rsqrt", "reciprocal", "cumsum")),
        *(getattr(torch.Tensor, name) for name in ("cumprod", "norm", "sum", "prod", "softmax", "log_softmax")),
        functional.softmax,
        functional.log_softmax,
    }
)
"""Operators in float32 under CUDA's autocast but not the CPU's (torch's autocast op reference), if models use them."""


class AsOnCuda(TorchFunctionMode):
    """Gives functions that models call the tensors they would make on the device."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self._stand_ins: dict[Any, Callable[..., Any]] = {
            functional.scaled_dot_product_attention: cuda_attention(device.capability),
            functional.dropout: _dropout,
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        stand_in = self._stand_ins.get(func)
        if stand_in is not None:
            return stand_in(*args, **kwargs)
        if func in FLOAT32_ON_CUDA and torch.is_autocast_enabled("cpu") and kwargs.get("dtype") is None:
            args = tuple(_in_float32(value) for value in args)
            kwargs = {name: _in_float32(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _in_float32(value: Any) -> Any:
    is_16bit = isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if is_16bit else value


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """CUDA's fused kernel: the output and a mask of one byte an element."""
    if not training or p == 0:
        return input
    output, _ = torch.native_dropout(input, p, True)
    return input.copy_(output) if inplace else output


@contextmanager
def cuda_autocast(dtype: torch.dtype | None) -> Iterator[None]:
    """Autocast for fake CPU tensors that stand for CUDA ones: PEFT asks whether CUDA's is on before it casts."""
    if dtype is None:
        yield
        return
    was_enabled, old_dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    try:
        with torch.autocast("cpu", dtype):
            yield
    finally:
        torch.set_autocast_enabled("cuda", was_enabled)
        torch.set_autocast_dtype("cuda", old_dtype)


class _Int8Linear(torch.autograd.Function):
    """LLM.int8() as bitsandbytes computes it on CUDA, without outliers, in tensors that hold nothing.

    The input is rounded to float16, then to int8; the product comes in int32 and is scaled into float16, then into the
    input's dtype. Kept: the input, which backward does not need. Backward dequantizes the whole weight.
    """

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        half = input.to(torch.float16)
        rows_MK = torch.empty(half.shape, dtype=torch.int8)
        scale_M = torch.empty(half.numel() // half.shape[-1])
        product_MN = torch.empty((*input.shape[:-1], weight.shape[0]), dtype=torch.int32)
        scaled_MN = torch.empty(product_MN.shape, dtype=torch.float16)
        del product_MN, rows_MK, scale_M, half
        ctx.kept = input
        ctx.weight = weight
        return scaled_MN.to(input.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> Any:
        weight_NK = ctx.weight.to(ctx.kept.dtype)
        return torch.matmul(grad_output.to(ctx.kept.dtype), weight_NK), None


def use_cuda_int8(model: nn.Module) -> None:
    """Let int8 layers of a fake model make the tensors that they make on CUDA."""
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear8bitLt):
            module.forward = _int8_forward(module)


def _int8_forward(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = _Int8Linear.apply(x, module.weight)
        return output if module.bias is None else output + module.bias.to(output.dtype)

    return forward


def workspaces(request: PlanRequest) -> Mapping[Any, Workspace]:
    """Memory that kernels allocate inside, by operator, on the request's device."""
    on_cuda = request.device.kind == "cuda"
    rules: dict[Any, Workspace] = {
        torch.ops.bitsandbytes.gemm_4bit.default: _dequantized_on_cuda if on_cuda else _dequantized_on_cpu
    }
    if not on_cuda:
        return rules
    if request.recipe.training.optim == "adamw_torch":
        rules[torch.ops.aten._fused_adamw_.default] = _square_roots
    return rules | dict(CUDA_ATTENTION_WORKSPACES)


def _square_roots(args: Sequence[Any]) -> list[tuple[MemoryKind, int]]:
    """torch's AdamW updates all parameters together: the roots of all second moments are there together."""
    return [(MemoryKind.KERNEL_WORKSPACE, sum(parameter.untyped_storage().nbytes() for parameter in args[0]))]


def _dequantized_on_cpu(args: Sequence[Any]) -> list[tuple[MemoryKind, int]]:
    """The whole weight in the input's dtype, and its block constants in float32 where they are quantized too."""
    input, _, shape, _, blocksize = args[:5]
    is_nested = len(args) > 7 and args[7] is not None
    num_weights = math.prod(shape)
    constants = -(-num_weights // blocksize) * 4 if is_nested else 0
    return [(MemoryKind.DEQUANTIZED, constants), (MemoryKind.DEQUANTIZED, num_weights * input.element_size())]


def _dequantized_on_cuda(args: Sequence[Any]) -> list[tuple[MemoryKind, int]]:
    """As on the CPU, with the constants held twice: before and after their offset is added.

    For less than about 1,536 tokens bitsandbytes has a fused kernel for some shapes, which needs none of this; the
    backward pass dequantizes anyway.
    """
    constants, weight = _dequantized_on_cpu(args)
    return [constants, constants, weight]


def _grouped_product(
    left: torch.Tensor,
    right: torch.Tensor,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """A tensor shaped as the product of groups of rows with a matrix each, or of groups of columns and rows.

    >>> _grouped_product(torch.empty(10, 4), torch.empty(3, 4, 6), torch.empty(3)).shape
    torch.Size([10, 6])
    >>> _grouped_product(torch.empty(4, 10), torch.empty(10, 6), torch.empty(3)).shape
    torch.Size([3, 4, 6])
    """
    shape: tuple[int, ...] = (left.shape[-2], right.shape[-1])
    if left.dim() == right.dim():
        shape = (left.shape[0] if offs is None else offs.shape[0], *shape)
    return left.new_empty(shape, dtype=out_dtype or left.dtype)


FAKE_KERNELS: Mapping[Any, Callable[..., Any]] = {torch.ops.aten._grouped_mm.default: _grouped_product}
"""For operators whose own fake kernel refuses what the real one takes: experts' products in float32 on a CPU."""
