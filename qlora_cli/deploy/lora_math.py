"""The arithmetic of a merge: one frozen weight and one low-rank update in, one weight out.

Shape letters: O = output features, I = input features, R = rank of the update.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LowRankUpdate:
    """The update that an adapter adds to one weight matrix."""

    A_RI: torch.Tensor
    """Down projection."""

    B_OR: torch.Tensor
    """Up projection; zero before training."""

    scaling: float
    """lora_alpha / r, or lora_alpha / sqrt(r) for rsLoRA (arXiv:2312.03732)."""

    magnitude: torch.Tensor | None = None
    """DoRA's learned length of each output row, [O] (arXiv:2402.09353); None for plain LoRA."""


def merged_weight(base_weight_OI: torch.Tensor, update: LowRankUpdate, *, in_place: bool = False) -> torch.Tensor:
    """The weight that does in one product what base and adapter do in three.

    LoRA (arXiv:2106.09685): W' = W + scaling * B @ A. DoRA (arXiv:2402.09353, equation 5) then sets the length of
    each row, that is of all weights into one output feature: W' = m * (W + scaling * B @ A) / ||W + scaling * B @ A||.

    Everything is summed in float32: bfloat16 keeps 8 significand bits, and a trained update is often smaller than
    the last of them.

    Args:
        base_weight_OI: the frozen weight, dequantized, as `nn.Linear` stores it.
        update: the adapter's part; on any device and in any floating dtype.
        in_place: whether the memory of a float32 weight may be used for the result.

    Returns:
        Float32 tensor [O, I] on the base weight's device.

    Raises:
        ValueError: if the shapes do not belong together.

    >>> update = LowRankUpdate(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0], [0.0]]), scaling=2.0)
    >>> merged_weight(torch.eye(2), update).tolist()
    [[7.0, 0.0], [0.0, 1.0]]
    """
    A_RI, B_OR = update.A_RI.to(base_weight_OI.device), update.B_OR.to(base_weight_OI.device)
    if (B_OR.shape[0], A_RI.shape[1]) != base_weight_OI.shape or B_OR.shape[1] != A_RI.shape[0]:
        raise ValueError(
            f"B {list(B_OR.shape)} @ A {list(A_RI.shape)} does not fit a weight {list(base_weight_OI.shape)}"
        )
    frozen_OI = base_weight_OI.float()
    add = frozen_OI.addmm_ if in_place else frozen_OI.addmm
    weight_OI = add(B_OR.float(), A_RI.float(), alpha=update.scaling)
    if update.magnitude is None:
        return weight_OI
    magnitude_O = update.magnitude.to(weight_OI.device).float()
    return weight_OI * (magnitude_O / torch.linalg.norm(weight_OI, dim=1))[:, None]


def of_columns(update: LowRankUpdate, num_columns: int, num_features: int) -> LowRankUpdate:
    """The update of a QA-LoRA adapter (arXiv:2309.14717) on a weight, or on the offsets of its groups.

    Its A has a column for each group and multiplies the mean of the group's inputs times the number of groups, as PEFT
    pools them. So all weights of a group get the same addition, scaling * (B @ A) * groups / group size.

    Args:
        update: with A as it is trained, [R, groups].
        num_columns: of the matrix that is updated: the groups for offsets, `num_features` for a weight.
        num_features: input features of the layer.

    >>> update = LowRankUpdate(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0]]), scaling=1.0)
    >>> spread = of_columns(update, 4, 4)
    >>> spread.A_RI.tolist(), spread.scaling
    ([[1.0, 1.0, 2.0, 2.0]], 1.0)
    """
    num_groups = update.A_RI.shape[1]
    A_RC = update.A_RI.repeat_interleave(num_columns // num_groups, dim=1)
    return LowRankUpdate(A_RC, update.B_OR, update.scaling * num_groups / (num_features // num_groups))
