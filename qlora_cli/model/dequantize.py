"""Reading weights that are kept in few bits: by bitsandbytes in 4 or 8, or in our integers.

Shape letters: O = output features, I = input features.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import bitsandbytes as bnb
import torch
from torch import nn

from qlora_cli.model.integer.linear import IntegerLinear

INT8_MAX = 127


def is_quantized(module: nn.Module) -> bool:
    """Whether this layer's weight is stored by bitsandbytes or in integers."""
    return isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt | IntegerLinear)


def dequantized_weight(module: nn.Module) -> torch.Tensor:
    """The weight [O, I] of a quantized layer, with the values that its forward pass multiplies by.

    A 4-bit weight comes in the dtype it had before quantization, since training rounds to that one too; an int8
    weight, CB * SCB / 127 with one scale a row (LLM.int8(), arXiv:2208.07339), and integers in groups in float32.

    Raises:
        ValueError: if the layer is not quantized.
    """
    if isinstance(module, bnb.nn.Linear4bit):
        return bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
    if isinstance(module, bnb.nn.Linear8bitLt):
        # The first forward pass moves the row scales from the parameter to the module's state.
        row_scale_O = module.state.SCB if module.weight.SCB is None else module.weight.SCB
        return module.weight.data * (row_scale_O[:, None].float() / INT8_MAX)
    if isinstance(module, IntegerLinear):
        return module.dequantized(torch.float32)
    raise ValueError(f"{type(module).__name__} is not quantized")


@contextmanager
def no_outlier_columns(model: nn.Module) -> Iterator[None]:
    """Let int8 layers round each token by itself while the block runs.

    LLM.int8() multiplies in 16 bit the columns in which any token of the batch exceeds a threshold (6.0). Another token
    in the batch can so move a column between int8 and 16 bit for all tokens, and with it the rounding of their logits,
    though no token attends to it. At a threshold of 0 no column is picked, and a token's result depends on it alone.
    Without effect on other models.
    """
    states = [module.state for module in model.modules() if isinstance(module, bnb.nn.Linear8bitLt)]
    thresholds = [state.threshold for state in states]
    for state in states:
        state.threshold = 0.0
    try:
        yield
    finally:
        for state, threshold in zip(states, thresholds, strict=True):
            state.threshold = threshold
