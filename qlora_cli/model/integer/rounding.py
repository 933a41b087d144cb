"""Weights rounded to the nearest of evenly spaced levels, group by group.

Shape letters: O = output features, I = input features, G = groups.
"""

from __future__ import annotations

import torch

SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Parts of a group's range that are tried: outliers beyond the levels are clipped where that lowers the error."""


def round_to_nearest(weight_OI: torch.Tensor, bits: int, group_size: int) -> tuple[torch.Tensor, ...]:
    """Codes of the levels nearest to each weight, in the range of its group that has the least squared error.

    Returns:
        codes uint8 [O, I]; scales and offsets float16 [O, G], of which the codes are the nearest.

    >>> codes, scales, offsets = round_to_nearest(torch.arange(4.0)[None], bits=2, group_size=4)
    >>> codes.tolist(), scales.tolist(), offsets.tolist()
    ([[0, 1, 2, 3]], [[1.0]], [[0.0]])
    """
    weight_OGI = weight_OI.float().unflatten(1, (-1, group_size))
    low, high = weight_OGI.amin(-1), weight_OGI.amax(-1)
    scales, offsets = _levels(low, high, bits)
    codes, error = _nearest(weight_OGI, scales, offsets, bits)
    for shrink in SHRINKS[1:]:
        clip = (high - low) * (1 - shrink) / 2
        tried = _levels(low + clip, high - clip, bits)
        tried_codes, tried_error = _nearest(weight_OGI, *tried, bits)
        is_better = tried_error < error
        scales, offsets = torch.where(is_better, tried[0], scales), torch.where(is_better, tried[1], offsets)
        codes, error = torch.where(is_better[..., None], tried_codes, codes), torch.minimum(tried_error, error)
    return codes.flatten(1), scales, offsets


def _levels(low: torch.Tensor, high: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and offsets as they are stored, in float16."""
    return ((high - low) / (2**bits - 1)).half(), low.half()


def _nearest(
    weight_OGI: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes uint8 [O, G, I] and the squared error of each group [O, G].

    Errors are summed in float64: in float32 the order of a sum, which differs between machines, would decide between
    ranges that are nearly as good, and the codes would not be the same everywhere.
    """
    step, offset = scales.float()[..., None], offsets.float()[..., None]
    codes = nearest_codes(weight_OGI, step, offset, bits)
    return codes.to(torch.uint8), (codes * step + offset - weight_OGI).square().sum(-1, dtype=torch.float64)


def nearest_codes(weight: torch.Tensor, step: torch.Tensor, offset: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes of the levels offset, offset + step, ... nearest to each weight, in float32. A step of 0 is one level."""
    return ((weight - offset) / step.where(step > 0, 1.0)).round().clamp(0, 2**bits - 1)
