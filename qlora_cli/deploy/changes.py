"""What an adapter does to each parameter of its base, worked out on rows, so that no whole weight is ever needed.

A parameter is taken for rows of its last dimension, in the layout in which the plain model stores it.

Shape letters: E = experts, O = output features, I = input features, R = rank, S = rows at hand, C = columns of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from qlora_cli.deploy.lora_math import LowRankUpdate, merged_weight


class Change(Protocol):
    """A change of one parameter."""

    @property
    def rows_at_once(self) -> int | None:
        """Chunks must not cross a multiple of so many rows; None where they may lie anywhere, 0 for no chunks."""

    def apply(self, rows_SC: torch.Tensor, start: int) -> torch.Tensor:
        """The changed rows, float32.

        Args:
            rows_SC: the base's, float32; their memory may be used for the result.
            start: row of the parameter that the first one is.
        """


@dataclass(frozen=True)
class LinearChange:
    """A low-rank update of a weight matrix, LoRA or DoRA."""

    update: LowRankUpdate
    is_turned: bool
    """The plain module stores [I, O], as `Conv1D` and `Embedding` do."""

    @property
    def rows_at_once(self) -> int | None:
        """DoRA needs all weights into one output feature: with a turned matrix, all rows."""
        return 0 if self.is_turned and self.update.magnitude is not None else None

    def apply(self, rows_SC: torch.Tensor, start: int) -> torch.Tensor:
        """See `Change`."""
        stop = start + len(rows_SC)
        A_RI, B_OR = self.update.A_RI, self.update.B_OR
        if not self.is_turned:
            magnitude = None if self.update.magnitude is None else self.update.magnitude[start:stop]
            update = LowRankUpdate(A_RI, B_OR[start:stop], self.update.scaling, magnitude)
            return merged_weight(rows_SC, update, in_place=True)
        if self.update.magnitude is not None:
            return merged_weight(rows_SC.T, self.update).T
        update = LowRankUpdate(B_OR.T, A_RI.T[start:stop], self.update.scaling)
        return merged_weight(rows_SC, update, in_place=True)


@dataclass(frozen=True)
class ExpertsChange:
    """A low-rank update of the weights of all experts of a layer, each with its own factors.

    PEFT's `ParamWrapper` keeps the factors of all experts in two matrices: A as [E x R, I], the rows of an expert
    together, and B as [O, R x E], the columns of a direction together.
    """

    update: LowRankUpdate
    num_experts: int
    is_output_first: bool
    """The parameter is [E, O, I], not [E, I, O]."""

    @property
    def rows_at_once(self) -> int:
        """One expert's."""
        return len(self.update.B_OR) if self.is_output_first else self.update.A_RI.shape[1]

    def apply(self, rows_SC: torch.Tensor, start: int) -> torch.Tensor:
        """See `Change`; the rows are of one expert, or of whole ones."""
        num_rows = self.rows_at_once
        for first in range(0, len(rows_SC), num_rows):
            rows = rows_SC[first : first + num_rows]
            expert, row = divmod(start + first, num_rows)
            merged_weight(rows, self._factors(expert, row, row + len(rows)), in_place=True)
        return rows_SC

    def _factors(self, expert: int, start: int, stop: int) -> LowRankUpdate:
        A, B = self.update.A_RI, self.update.B_OR
        A_RI = A.reshape(self.num_experts, -1, A.shape[1])[expert]
        B_OR = B.reshape(len(B), -1, self.num_experts)[:, :, expert]
        if self.is_output_first:
            return LowRankUpdate(A_RI, B_OR[start:stop], self.update.scaling)
        return LowRankUpdate(B_OR.T, A_RI.T[start:stop], self.update.scaling)


@dataclass(frozen=True)
class Replacement:
    """A tensor that was trained in full."""

    tensor: torch.Tensor
    rows_at_once: int | None = None

    def apply(self, rows_SC: torch.Tensor, start: int) -> torch.Tensor:
        """See `Change`."""
        return self.tensor.reshape(-1, rows_SC.shape[1])[start : start + len(rows_SC)].float()


@dataclass(frozen=True)
class TokenRows:
    """Single rows of an embedding or an output head that were trained, one a token."""

    token_ids: torch.Tensor
    rows: torch.Tensor
    """[N, C], in the order of `token_ids`."""

    rows_at_once: int | None = None

    def apply(self, rows_SC: torch.Tensor, start: int) -> torch.Tensor:
        """See `Change`."""
        is_here = (self.token_ids >= start) & (self.token_ids < start + len(rows_SC))
        return rows_SC.index_copy_(0, self.token_ids[is_here] - start, self.rows[is_here].float())


@dataclass(frozen=True)
class Addition:
    """A tensor that is added as it is: the bias of an adapter, to that of its layer."""

    tensor: torch.Tensor
    rows_at_once: int | None = None

    def apply(self, rows_SC: torch.Tensor, start: int) -> torch.Tensor:
        """See `Change`."""
        return rows_SC.add_(self.tensor.reshape(-1, rows_SC.shape[1])[start : start + len(rows_SC)].float())


def are_same(first: Change | None, second: Change | None) -> bool:
    """Whether both put the same numbers in the same places, whatever was there."""
    match first, second:
        case Replacement(), Replacement():
            return torch.equal(first.tensor, second.tensor)
        case TokenRows(), TokenRows():
            return torch.equal(first.token_ids, second.token_ids) and torch.equal(first.rows, second.rows)
        case _:
            return False
