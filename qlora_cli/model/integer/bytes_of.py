"""Bytes that a base takes in integers, and whether the cache has room for them."""

from __future__ import annotations

import shutil
from pathlib import Path

from qlora_cli.cache_folder import CACHE_ELSEWHERE, cache_folder
from qlora_cli.console import size_in_words
from qlora_cli.errors import ResourceError
from qlora_cli.recipe.schema import QuantizationSection
from qlora_cli.run.disk_errors import final_name

FLOAT16_BYTES, FLOAT32_BYTES = 2, 4


def integer_bytes(quantization: QuantizationSection, num_weights: int, offset_bytes: int) -> int:
    """Bytes of weights in integers, with the float16 scale and the offset of each group.

    >>> integer_bytes(QuantizationSection(method="int", bits=3, group_size=32), 64, FLOAT16_BYTES)
    32
    """
    num_groups = max(num_weights // quantization.weights_in_group, 0)  # whole rows are few
    return num_weights * quantization.num_bits // 8 + num_groups * (FLOAT16_BYTES + offset_bytes)


def refuse_full_disk(out: Path, num_bytes: int) -> None:
    """Refuse before anything is written what the disk has no room for.

    Args:
        out: folder that is to be made, in the cache or of a run.
        num_bytes: of its tensors.

    Raises:
        ResourceError: with the sizes.
    """
    free_bytes = shutil.disk_usage(out.parent).free
    if free_bytes < num_bytes:
        raise ResourceError(
            f"the disk is full: the base in integers takes {size_in_words(num_bytes)}, and "
            f"{size_in_words(free_bytes)} are free",
            place=final_name(str(out)),
            hint=f"make room, {CACHE_ELSEWHERE}" if out.is_relative_to(cache_folder("")) else "make room",
        )
