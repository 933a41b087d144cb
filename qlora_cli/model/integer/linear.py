"""A linear layer whose weight is stored in integers, with a scale and an offset for each group of input features.

Shape letters: O = output features, I = input features, G = groups.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from qlora_cli.model.integer.codes import BITS_OF_BYTE, unpack
from qlora_cli.recipe.foreign_integers import weights_of_group


class IntegerLinear(nn.Linear):
    """W[o, i] = code[o, i] * scale[o, group] + offset[o, group] (QA-LoRA, arXiv:2309.14717, section 3.2).

    It derives from `nn.Linear`, as the layers of bitsandbytes do, so that libraries take it for a linear layer; there
    is no parameter `weight` in it.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor

    def __init__(
        self, in_features: int, out_features: int, bits: int, group_size: int, bias: nn.Parameter | None = None
    ) -> None:
        """Make the layer; all its codes are 0.

        Args:
            in_features: a multiple of `group_size` and of 8.
            out_features: of the layer.
            bits: of a code.
            group_size: input features that share a scale and an offset; -1 for all of them.
            bias: the layer's, if it has one.
        """
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.group_size = bits, weights_of_group(group_size, in_features)
        num_groups = in_features // self.group_size
        self.register_buffer("codes", torch.zeros(out_features, in_features * bits // BITS_OF_BYTE, dtype=torch.uint8))
        self.register_buffer("scales", torch.zeros(out_features, num_groups, dtype=torch.float16))
        self.register_buffer("offsets", torch.zeros(out_features, num_groups, dtype=torch.float16))
        self.bias = bias  # type: ignore[assignment]

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """The codes: adapters ask the weight for its device."""
        return self.codes

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [O, I], computed in float32."""
        return _dequantized(self.codes, self.scales, self.offsets, self.bits, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As `nn.Linear`, in the dtype of `x`; only the packed tensors are kept for the backward pass."""
        product: torch.Tensor = _Product.apply(x, self.codes, self.scales, self.offsets, self.bits)
        return product if self.bias is None else product + self.bias.to(product.dtype)


def num_integer_weights(model: nn.Module) -> int:
    """Weights of all integer layers, which are none of the model's parameters."""
    layers = [module for module in model.modules() if isinstance(module, IntegerLinear)]
    return sum(layer.in_features * layer.out_features for layer in layers)


def _dequantized(
    codes: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor, bits: int, dtype: torch.dtype
) -> torch.Tensor:
    """The weight [O, I], computed in float32; on a GPU by one kernel.

    Without it the weight is made in one tensor: a second one would cost as much time as the arithmetic.
    """
    if codes.is_cuda and _has_triton():
        from qlora_cli.model.integer.kernel import written_out

        return written_out(codes, scales, offsets, bits, dtype)
    weight_OGI = unpack(codes, bits).unflatten(1, (scales.shape[1], -1)).float()
    return weight_OGI.mul_(scales.float()[..., None]).add_(offsets.float()[..., None]).flatten(1).to(dtype)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


class _Product(torch.autograd.Function):
    """x @ W.T; the weight is frozen, and made again for the gradient of x."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor, bits: int
    ) -> torch.Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        ctx.save_for_backward(codes, scales, offsets)
        ctx.bits = bits
        return nn.functional.linear(x, _dequantized(codes, scales, offsets, bits, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None, None]:
        (gradient,) = gradients
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        codes, scales, offsets = ctx.saved_tensors
        weight_OI = _dequantized(codes, scales, offsets, ctx.bits, gradient.dtype)
        return gradient @ weight_OI, None, None, None, None
