"""GPTQ: a weight rounded column by column, the error of each made up for by the columns that come after it.

Frantar et al. 2022, arXiv:2210.17323. For the second moment H = sum of x x^T over the inputs x of a layer, let U be the
upper triangular matrix with U^T U = H^-1. When column i has been rounded from w_i to q_i, the output of the layer moves
least if every later column j then moves by

    w_j <- w_j - (w_i - q_i) / U[i, i] * U[i, j]                (equations 2 and 3, section 3.3)

Columns go in the order in which they are stored, without act-order, so that a group's columns lie together. The range
of a group is searched on its weights as they are when its turn comes.

Shape letters: O = output features, I = input features, G = groups, S = input features of a group.
"""

from __future__ import annotations

import torch

from qlora_cli.errors import NumericError
from qlora_cli.model.integer.rounding import nearest_codes, round_to_nearest
from qlora_cli.model.layer_inputs import damped


def round_with_feedback(
    weight_OI: torch.Tensor, feedback_II: torch.Tensor, bits: int, group_size: int
) -> tuple[torch.Tensor, ...]:
    """Codes, scales and offsets as `round_to_nearest` gives them, which it equals where `feedback_II` is diagonal.

    Args:
        weight_OI: it stays as it is.
        feedback_II: what `feedback_factor` makes of the layer's inputs.
        bits: of a code.
        group_size: input features that share a scale and an offset.

    >>> codes, scales, offsets = round_with_feedback(torch.arange(4.0)[None], torch.eye(4), bits=2, group_size=4)
    >>> codes.tolist(), scales.tolist(), offsets.tolist()
    ([[0, 1, 2, 3]], [[1.0]], [[0.0]])
    """
    weight_OI = weight_OI.to(torch.float32, copy=True)
    codes, scales, offsets = [], [], []
    for start in range(0, weight_OI.shape[1], group_size):
        group, later = slice(start, start + group_size), slice(start + group_size, None)
        _, scales_O1, offsets_O1 = round_to_nearest(weight_OI[:, group], bits, group_size)
        codes_OS, errors_OS = _round_group(
            weight_OI[:, group], feedback_II[group, group], (scales_O1.float(), offsets_O1.float()), bits
        )
        weight_OI[:, later] -= errors_OS @ feedback_II[group, later]
        codes.append(codes_OS)
        scales.append(scales_O1)
        offsets.append(offsets_O1)
    return torch.cat(codes, 1), torch.cat(scales, 1), torch.cat(offsets, 1)


def _round_group(
    weight_OS: torch.Tensor, feedback_SS: torch.Tensor, levels: tuple[torch.Tensor, torch.Tensor], bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes uint8 [O, S] of one group, and the error of each column over its U[i, i], which later groups make up for.

    Args:
        weight_OS: it is changed.
        levels: scale and offset of the group, each [O, 1] in float32.
    """
    step_O1, offset_O1 = levels
    codes_OS = torch.empty_like(weight_OS, dtype=torch.uint8)
    errors_OS = torch.empty_like(weight_OS)
    for i in range(weight_OS.shape[1]):
        column_O1 = weight_OS[:, i : i + 1]
        codes_O1 = nearest_codes(column_O1, step_O1, offset_O1, bits)
        error_O1 = (column_O1 - (codes_O1 * step_O1 + offset_O1)) / feedback_SS[i, i]
        weight_OS[:, i + 1 :] -= error_O1 * feedback_SS[i, i + 1 :]
        codes_OS[:, i : i + 1], errors_OS[:, i : i + 1] = codes_O1, error_O1
    return codes_OS, errors_OS


def feedback_factor(moment_II: torch.Tensor, name: str) -> torch.Tensor:
    """U [I, I] of a layer, in float32.

    With H = R R^T, R upper triangular, U is the inverse of R: H is never inverted itself. A layer that no token
    reached, such as an expert, gets the identity, with which it is rounded to the nearest.

    Args:
        moment_II: H; it is changed.
        name: of the layer.

    Raises:
        NumericError: if the layer gets inputs that are not finite.
    """
    key, hint = "quantization.calibration is rows", "--set model.dtype=bfloat16, or --set quantization.calibration=none"
    identity_II = torch.eye(len(moment_II), device=moment_II.device)
    damped_II = damped(moment_II, name, key, hint)
    if damped_II is None:
        return identity_II
    lower_II, fault = torch.linalg.cholesky_ex(damped_II.flip(0, 1))
    if fault:
        raise NumericError(f"{key}, but layer '{name}' gets inputs that are nearly infinite", hint=hint)
    return torch.linalg.solve_triangular(lower_II.flip(0, 1), identity_II, upper=True)
