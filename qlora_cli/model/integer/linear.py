"""A linear layer whose weight is stored in integers, with a scale and an offset for each group of input features.

Shape letters: O = output features, I = input features, G = groups.
"""

from __future__ import annotations

import torch
from torch import nn

from qlora_cli.model.integer.codes import unpack


class IntegerLinear(nn.Module):
    """W[o, i] = code[o, i] * scale[o, group] + offset[o, group]."""

    codes: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor

    def __init__(
        self, in_features: int, out_features: int, bits: int, group_size: int, bias: nn.Parameter | None = None
    ) -> None:
        """Make the layer; all its codes are 0."""
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.group_size = bits, group_size
        num_groups = in_features // group_size
        self.register_buffer("codes", torch.zeros(out_features, in_features * bits // 8, dtype=torch.uint8))
        self.register_buffer("scales", torch.zeros(out_features, num_groups, dtype=torch.float16))
        self.register_buffer("offsets", torch.zeros(out_features, num_groups, dtype=torch.float16))
        self.bias = bias

    @property
    def weight(self) -> torch.Tensor:
        """The codes: adapters ask the weight for its device."""
        return self.codes

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [O, I], computed in float32."""
        codes_OGI = unpack(self.codes, self.bits).unflatten(1, (self.scales.shape[1], -1))
        weight_OGI = codes_OGI * self.scales.float()[..., None] + self.offsets.float()[..., None]
        return weight_OGI.flatten(1).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As `nn.Linear`."""
        return nn.functional.linear(x, self.dequantized(x.dtype), self.bias)
