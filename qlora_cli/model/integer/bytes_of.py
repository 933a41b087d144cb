"""Bytes that a base takes in integers, and whether the cache has room for them."""

from __future__ import annotations

import shutil
from pathlib import Path

from qlora_cli.cache_folder import CACHE_ELSEWHERE
from qlora_cli.console import size_in_words
from qlora_cli.errors import ResourceError
from qlora_cli.recipe.schema import QuantizationSection

FLOAT16_BYTES, FLOAT32_BYTES = 2, 4


def integer_bytes(quantization: QuantizationSection, num_weights: int, offset_bytes: int) -> int:
    """Bytes of weights in integers, with the float16 scale and the offset of each group.

    >>> integer_bytes(QuantizationSection(method="int", bits=3, group_size=32), 64, FLOAT16_BYTES)
    32
    """
    num_groups = num_weights // quantization.weights_in_group
    return num_weights * quantization.num_bits // 8 + num_groups * (FLOAT16_BYTES + offset_bytes)


def refuse_full_disk(out: Path, num_bytes: int) -> None:
    """Refuse before anything is written what the disk has no room for.

    Args:
        out: folder of the cache that is to be made.
        num_bytes: of its tensors.

    Raises:
        ResourceError: with the sizes.
    """
    folder = next(parent for parent in out.parents if parent.exists())
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < num_bytes:
        raise ResourceError(
            f"the disk is full: the base in integers takes {size_in_words(num_bytes)}, and "
            f"{size_in_words(free_bytes)} are free",
            place=str(out),
            hint=f"make room, {CACHE_ELSEWHERE}",
        )
