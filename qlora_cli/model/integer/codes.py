"""Codes of 4, 3 or 2 bits one after another in bytes: code j of a row takes its bits from j * bits on, lowest first.

Eight codes fill as many bytes as a code has bits, so rows are read and written eight codes at a time.
"""

from __future__ import annotations

import torch

BITS_OF_BYTE = 8
CODES_AT_ONCE = 8


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Put codes together.

    Args:
        codes: uint8 [..., n]; n is a multiple of 8.
        bits: of a code.

    Returns:
        uint8 [..., n * bits / 8].

    >>> pack(torch.tensor([1, 2, 3, 4, 5, 6, 7, 0], dtype=torch.uint8), 3).tolist()
    [209, 88, 31]
    """
    columns = codes.unflatten(-1, (-1, CODES_AT_ONCE)).unbind(-1)
    packed = [torch.zeros_like(columns[0]) for _ in range(bits)]
    for number, code in enumerate(columns):
        byte, shift = divmod(number * bits, BITS_OF_BYTE)
        packed[byte] |= code << shift  # what does not fit into the byte falls off
        if shift + bits > BITS_OF_BYTE:
            packed[byte + 1] |= code >> (BITS_OF_BYTE - shift)
    return torch.stack(packed, dim=-1).flatten(-2)


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """The codes again, uint8 [..., n].

    >>> unpack(torch.tensor([209, 88, 31], dtype=torch.uint8), 3).tolist()
    [1, 2, 3, 4, 5, 6, 7, 0]
    """
    columns = packed.unflatten(-1, (-1, bits)).unbind(-1)
    codes = []
    for number in range(CODES_AT_ONCE):
        byte, shift = divmod(number * bits, BITS_OF_BYTE)
        code = columns[byte] >> shift
        if shift + bits > BITS_OF_BYTE:
            code = code | (columns[byte + 1] << (BITS_OF_BYTE - shift))
        codes.append(code & (2**bits - 1))
    return torch.stack(codes, dim=-1).flatten(-2)
