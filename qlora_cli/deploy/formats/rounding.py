"""Weights to integers: round to nearest, with the scale of each group searched for the least squared error.

Shape letters: R = rows (outputs), C = columns (inputs), G = groups in a row.
"""

from __future__ import annotations

import torch

SHRINKS = tuple(1.0 - 0.02 * step for step in range(16))
"""Parts of the largest scale that are tried: the outlier of a group may be cut off for the good of all others."""

PER_WORD = 32
"""Bits of the integers that codes are packed into."""


def quantize_rows(
    weight_RC: torch.Tensor, num_bits: int, group_size: int | None, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of rows, so that weight is about scale * code.

    Codes are from -2^(b-1) to 2^(b-1) - 1. Of the scales tried, each as it is stored, a group gets the one with the
    least squared error; one that cuts nothing off is among them.

    Args:
        weight_RC: rows of a weight.
        num_bits: b, of a code.
        group_size: columns that share a scale; None for a whole row.
        dtype: of the stored scales.

    Returns:
        int8 [R, C] codes and [R, G] scales of `dtype`.

    >>> codes, scales = quantize_rows(torch.tensor([[0.7, -0.8, 0.1, 0.0]]), 4, 4, torch.float32)
    >>> codes.tolist(), round(scales.item(), 1)
    ([[7, -8, 1, 0]], 0.1)
    """
    size = group_size or weight_RC.shape[1]
    weight_RGS = weight_RC.float().reshape(len(weight_RC), -1, size)
    low, high = -(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1
    # The scale at which neither end is cut by more than the half step that rounding takes.
    largest_RG1 = torch.maximum(weight_RGS.amax(-1, True) / (high + 0.5), weight_RGS.amin(-1, True) / (low - 0.5))
    best_error = torch.full_like(largest_RG1, torch.inf)
    best_scale = torch.ones_like(largest_RG1)
    for shrink in SHRINKS:
        scale_RG1 = _stored(largest_RG1 * shrink, dtype)
        rounded = (weight_RGS / scale_RG1).round_().clamp_(low, high).mul_(scale_RG1)
        error = rounded.sub_(weight_RGS).square_().sum(-1, True)
        is_better = error < best_error
        best_error, best_scale = (
            torch.where(is_better, error, best_error),
            torch.where(is_better, scale_RG1, best_scale),
        )
    codes = (weight_RGS / best_scale).round_().clamp_(low, high).to(torch.int8)
    return codes.reshape(weight_RC.shape), best_scale.squeeze(-1).to(dtype)


def _stored(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The scale as it is read back; 1 for a group of zeros, and where the type holds nothing as small."""
    stored = scale.to(dtype).float()
    return torch.where(stored > 0, stored, torch.ones_like(stored))


def pack(codes_RC: torch.Tensor, num_bits: int) -> torch.Tensor:
    """Codes as compressed-tensors packs them: moved to be positive, the first one in the lowest bits of an int32.

    Args:
        codes_RC: int8 [R, C]; C is a multiple of the codes in a word.
        num_bits: 4 or 8.

    Returns:
        int32 [R, C * num_bits / 32].

    >>> hex(pack(torch.tensor([[-8, -7, -6, -5, -4, -3, -2, -1]], dtype=torch.int8), 4).item())
    '0x76543210'
    """
    count = PER_WORD // num_bits
    moved = codes_RC.to(torch.int64) + 2 ** (num_bits - 1)
    shifts = torch.arange(0, PER_WORD, num_bits)
    words = (moved.reshape(len(codes_RC), -1, count) << shifts).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
