"""Reading the weights that bitsandbytes stores in 4 or 8 bit.

Shape letters: O = output features, I = input features.
"""

from __future__ import annotations

import bitsandbytes as bnb
import torch
from torch import nn

INT8_MAX = 127


def is_quantized(module: nn.Module) -> bool:
    """Whether bitsandbytes stores this layer's weight."""
    return isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt)


def dequantized_weight(module: nn.Module) -> torch.Tensor:
    """The weight [O, I] of a quantized layer, with the values that its forward pass multiplies by.

    A 4-bit weight comes in the dtype it had before quantization, since training rounds to that one too; an int8
    weight, CB * SCB / 127 with one scale a row (LLM.int8(), arXiv:2208.07339), in float32.

    Raises:
        ValueError: if the layer is not quantized.
    """
    if isinstance(module, bnb.nn.Linear4bit):
        return bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
    if isinstance(module, bnb.nn.Linear8bitLt):
        # The first forward pass moves the row scales from the parameter to the module's state.
        row_scale_O = module.state.SCB if module.weight.SCB is None else module.weight.SCB
        return module.weight.data * (row_scale_O[:, None].float() / INT8_MAX)
    raise ValueError(f"{type(module).__name__} is not quantized")
