"""Bytes that a base takes in integers."""

from __future__ import annotations

from qlora_cli.recipe.schema import QuantizationSection

FLOAT16_BYTES, FLOAT32_BYTES = 2, 4


def integer_bytes(quantization: QuantizationSection, num_weights: int, offset_bytes: int) -> int:
    """Bytes of weights in integers, with the float16 scale and the offset of each group.

    >>> integer_bytes(QuantizationSection(method="int", bits=3, group_size=32), 64, FLOAT16_BYTES)
    32
    """
    num_groups = max(num_weights // quantization.weights_in_group, 0)  # whole rows are few
    return num_weights * quantization.num_bits // 8 + num_groups * (FLOAT16_BYTES + offset_bytes)
