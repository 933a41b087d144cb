"""Attention as a CUDA device computes it, in the tensors that it keeps and the workspaces that it takes.

A trace runs on fake CPU tensors, whose attention kernel is the CPU's. Here `scaled_dot_product_attention` takes the
kernel that torch would choose on the planned device, by the conditions of ATen's `sdp_utils.cpp`. None of these kernels
keeps scores of every token with every token: flash attention (arXiv:2205.14135, arXiv:2307.08691), cuDNN's and the
memory-efficient one (arXiv:2112.05682) keep the output and one float32 a row; the dense mask is another matter, which
each layer converts to the queries' dtype. Only the fallback, plain matrix products, holds the scores.

    B = batch, H = heads, L = queries, S = keys, D = width of a head
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from qlora_cli.constants import AMPERE
from qlora_cli.plan.trace.live_memory import MemoryKind, Workspace
from qlora_cli.plan.trace.request import PlanRequest

aten = torch.ops.aten

WITHOUT_MASK = "sdpa_without_mask"
"""A name that transformers knows no mask for, so it makes none; the attention itself is SDPA's."""

AS_FLASH = "sdpa_of_padded_values"
"""The same for the package of flash attention; a name with `flash` in it would be looked for on the Hub."""

CUDNN_FIRST = (9, 10)
"""Major compute capabilities on which torch prefers cuDNN's attention, Hopper and Blackwell for data centres, where its
cuDNN is newer than 9.15.1. An older one leaves the choice between the others, which take about the same."""

MAX_FLASH_WIDTH = 256
MAX_CUDNN_WIDTH = 128
MASK_ALIGNMENT = 16
"""Elements to whose multiple the memory-efficient kernel pads the last dimension of its mask."""


def attention_on(request: PlanRequest) -> str:
    """The attention implementation that a trace of the request asks transformers for, and which it knows from then on.

    Who imports this file and traces nothing leaves transformers as it is.
    """
    name = request.recipe.model.attn_implementation
    if name == "eager" or request.has_mask:
        return name
    if name.startswith("flash_attention"):
        AttentionInterface.register(AS_FLASH, _flash_attention_forward)
        return AS_FLASH
    AttentionInterface.register(WITHOUT_MASK, sdpa_attention_forward)
    return WITHOUT_MASK


def _flash_attention_forward(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **options: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """transformers' way to the flash kernels: values narrower than queries, as DeepSeek has them, are padded."""
    width, missing = value.shape[-1], query.shape[-1] - value.shape[-1]
    if missing:
        value = pad(value, (0, missing))
    output, weights = sdpa_attention_forward(module, query, key, value, mask, **options)
    return output[..., :width], weights


def cuda_attention(capability: tuple[int, int]) -> Callable[..., torch.Tensor]:
    """A stand-in for `torch.nn.functional.scaled_dot_product_attention` on a device of that compute capability."""

    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
            if attn_mask is not None and attn_mask.is_floating_point():
                attn_mask = attn_mask.to(dtype)
        kernel = _kernel(query, value, attn_mask is not None, enable_gqa, capability)
        if attn_mask is not None and attn_mask.dtype is torch.bool:
            zero = torch.zeros((), dtype=query.dtype)
            attn_mask = torch.where(attn_mask.logical_not(), -torch.inf, zero)
        with torch.autocast("cpu", enabled=False):
            return _RUN[kernel](query, key, value, attn_mask, dropout_p, is_causal, scale)

    return attend


def _kernel(
    query: torch.Tensor, value: torch.Tensor, has_mask: bool, has_shared_heads: bool, capability: tuple[int, int]
) -> str:
    """The first kernel, in torch's order of preference, whose conditions hold."""
    width = query.shape[-1]
    is_16bit = query.dtype in (torch.float16, torch.bfloat16)
    is_even = value.shape[-1] == width  # the flash kernel takes heads of one width
    if is_16bit and capability[0] in CUDNN_FIRST and width % 8 == 0 and width <= MAX_CUDNN_WIDTH:
        return "cudnn"
    if is_16bit and capability >= AMPERE and not has_mask and width <= MAX_FLASH_WIDTH and is_even:
        return "flash"
    if width % (8 if is_16bit else 4) == 0 and not has_shared_heads:
        return "efficient"
    return "math"


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """Heads are padded to a multiple of 8; there is no mask."""
    width = query.shape[-1]
    missing = -width % 8
    if missing:
        query, key, value = (pad(tensor, (0, missing)) for tensor in (query, key, value))
    output = aten._scaled_dot_product_flash_attention(
        query, key, value, dropout_p, is_causal, False, scale=scale or width**-0.5
    )[0]
    return output[..., :width]


def _masked(kernel: Any, *flags: bool) -> Callable[..., torch.Tensor]:
    """A kernel that takes a mask; `flags` are its arguments after the causal one."""

    def run(query: Any, key: Any, value: Any, mask: Any, dropout_p: float, is_causal: bool, scale: Any) -> torch.Tensor:
        if mask is not None:
            mask = _expanded_mask(mask, query, key)
        output: torch.Tensor = kernel(query, key, value, mask, True, dropout_p, is_causal, *flags, scale=scale)[0]
        return output

    return run


def _math(query: Any, key: Any, value: Any, mask: Any, dropout_p: float, is_causal: bool, scale: Any) -> torch.Tensor:
    """Plain matrix products, which hold the scores of all pairs."""
    is_shared = query.shape[1] != key.shape[1]
    output: torch.Tensor = aten._scaled_dot_product_attention_math(
        query, key, value, mask, dropout_p, is_causal, scale=scale, enable_gqa=is_shared
    )[0]
    return output


_RUN: Mapping[str, Callable[..., torch.Tensor]] = {
    "flash": _flash,
    "cudnn": _masked(aten._scaled_dot_product_cudnn_attention, False),
    "efficient": _masked(aten._scaled_dot_product_efficient_attention),
    "math": _math,
}


def _expanded_mask(mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    missing = -mask.shape[-1] % MASK_ALIGNMENT
    if missing:
        mask = pad(mask, (0, missing))[..., : key.shape[2]]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])


def _round_up(number: int, multiple: int) -> int:
    """
    >>> _round_up(130, 64)
    192
    """
    return -(-number // multiple) * multiple


def _flash_backward(args: Sequence[Any]) -> list[tuple[MemoryKind, int]]:
    """float32 sums for the queries' gradient, one float32 a row, and gradients of shared heads before they are added.

    From `mha_bwd` of the flash-attention sources.
    """
    query, key = args[1], args[2]
    B, H, L, D = query.shape
    rows = _round_up(L, 128)
    sums = B * rows * H * _round_up(D, 32 if D <= 128 else 64) * 4
    is_shared = key.shape[1] != H
    expanded = 2 * B * key.shape[2] * H * D * query.element_size() if is_shared else 0
    return [(MemoryKind.KERNEL_WORKSPACE, size) for size in (B * H * rows * 4, sums, expanded)]


def _efficient_backward(args: Sequence[Any]) -> list[tuple[MemoryKind, int]]:
    """float32 sums for the queries' gradient, for heads over 128 also of keys and values, and one float32 a row.

    From `workspace_elements_gq` and its neighbours in ATen's mem_eff_attention/kernel_backward.h.
    """
    query, key = args[1], args[2]
    B, H, L, D = query.shape
    width = _round_up(D, 64)
    sums = _round_up(L, 64) * width
    if D > 128:
        num_splits = max(1, min(-(-key.shape[2] // 64), 200 // (B * H)))
        sums += 2 * num_splits * 64 * _round_up(D, 128)
    return [(MemoryKind.KERNEL_WORKSPACE, B * H * L * 4), (MemoryKind.KERNEL_WORKSPACE, B * H * sums * 4)]


def _cudnn_backward(args: Sequence[Any]) -> list[tuple[MemoryKind, int]]:
    """An estimate: cuDNN's sources are closed, and its algorithm is flash attention's."""
    B, H, L, D = args[1].shape
    return [(MemoryKind.KERNEL_WORKSPACE, B * H * L * 4), (MemoryKind.KERNEL_WORKSPACE, B * H * L * D * 4)]


CUDA_ATTENTION_WORKSPACES: Mapping[Any, Workspace] = {
    aten._scaled_dot_product_flash_attention_backward.default: _flash_backward,
    aten._scaled_dot_product_efficient_attention_backward.default: _efficient_backward,
    aten._scaled_dot_product_cudnn_attention_backward.default: _cudnn_backward,
}
