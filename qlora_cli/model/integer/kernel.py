"""The weight of an integer layer written out by one Triton kernel, where torch would run some twenty small ones.

Each program takes a part of one row. A code's bits lie in one byte or in two neighbours, so two bytes are read for each
code, and the rest is shifts. Numbers are those of `linear.py` but for the last bit: a compiler may multiply and add
with one rounding instead of two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 1024
"""Columns that a program takes at once."""


@triton.jit
def _write_out(  # type: ignore[no-untyped-def]
    codes,
    scales,
    offsets,
    out,
    row_bytes,
    num_groups,
    num_columns,
    bits: tl.constexpr,
    group_size: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    is_inside = columns < num_columns
    first_bit = columns * bits
    byte, shift = first_bit // 8, first_bit % 8
    low = tl.load(codes + row * row_bytes + byte, mask=is_inside, other=0).to(tl.int32)
    is_split = is_inside & (shift + bits > 8)
    high = tl.load(codes + row * row_bytes + byte + 1, mask=is_split, other=0).to(tl.int32)
    code = ((low | (high << 8)) >> shift) & ((1 << bits) - 1)
    group = row * num_groups + columns // group_size
    scale = tl.load(scales + group, mask=is_inside, other=0).to(tl.float32)
    offset = tl.load(offsets + group, mask=is_inside, other=0).to(tl.float32)
    tl.store(
        out + row * num_columns + columns, (code.to(tl.float32) * scale + offset).to(out.dtype.element_ty), is_inside
    )


def written_out(
    codes: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor, bits: int, dtype: torch.dtype
) -> torch.Tensor:
    """The weight [O, I] in `dtype`.

    Args:
        codes: uint8 [O, I * bits / 8], as `codes.py` packs them.
        scales: [O, G], in one piece.
        offsets: as `scales`.
        bits: of a code.
        dtype: of the weight.
    """
    num_rows, row_bytes = codes.shape
    num_groups, num_columns = scales.shape[1], row_bytes * 8 // bits
    out = torch.empty(num_rows, num_columns, dtype=dtype, device=codes.device)
    grid = (num_rows, triton.cdiv(num_columns, BLOCK))
    group_size = num_columns // num_groups
    _write_out[grid](codes, scales, offsets, out, row_bytes, num_groups, num_columns, bits, group_size, BLOCK)
    return out
