"""Codes of 4, 3 or 2 bits one after another in bytes: code j of a row takes its bits from j * bits on, lowest first."""

from __future__ import annotations

import torch

BITS_OF_BYTE = 8


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Put codes together.

    Args:
        codes: uint8 [..., n]; n * bits is a multiple of 8.
        bits: of a code.

    Returns:
        uint8 [..., n * bits / 8].

    >>> pack(torch.tensor([1, 2, 3, 4, 5, 6, 7, 0], dtype=torch.uint8), 3).tolist()
    [209, 88, 31]
    """
    places = (codes[..., None] >> torch.arange(bits, dtype=torch.uint8, device=codes.device)) & 1
    return _numbers(places.reshape(*codes.shape[:-1], -1, BITS_OF_BYTE))


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """The codes again, uint8 [..., n].

    >>> unpack(torch.tensor([209, 88, 31], dtype=torch.uint8), 3).tolist()
    [1, 2, 3, 4, 5, 6, 7, 0]
    """
    places = (packed[..., None] >> torch.arange(BITS_OF_BYTE, dtype=torch.uint8, device=packed.device)) & 1
    return _numbers(places.reshape(*packed.shape[:-1], -1, bits))


def _numbers(places: torch.Tensor) -> torch.Tensor:
    """The last dimension read as a number, lowest bit first."""
    shifts = torch.arange(places.shape[-1], dtype=torch.uint8, device=places.device)
    return (places << shifts).sum(-1, dtype=torch.uint8)
