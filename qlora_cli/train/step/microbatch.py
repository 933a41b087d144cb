"""When memory runs short: a forward and backward pass is done in smaller pieces, and its step once more.

The loss of a pass is divided by the labelled tokens of the whole step, so the gradients of pieces add up to those of
the pass. What cannot be the same is dropout, which draws other elements; the rows of a step are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from qlora_cli import console
from qlora_cli.model.device import free_memory, is_out_of_memory

Batch = dict[str, Any]


def generator_states() -> list[torch.Tensor]:
    """State of the generators that a forward pass draws from: the CPU's and, where there is one, the current GPU's."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


def restore_generators(states: Sequence[torch.Tensor]) -> None:
    """Set the generators to what `generator_states` returned."""
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state)


def chunks(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Parts of at most `size`.

    >>> list(chunks([5, 6, 7], 2))
    [[5, 6], [7]]
    """
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


@dataclass
class _Step:
    """A step as it began, and the rows of its passes that are done."""

    number: int
    generators: list[torch.Tensor]
    metrics: dict[str, int]
    """Number of values that each metric had."""

    done: list[torch.Tensor] = field(default_factory=list)


class MicrobatchRunner:
    """The passes of each step, in pieces of as many rows as fit into memory.

    Args:
        micro_batch_size: rows of a pass as the recipe has it.
        collate: makes a batch of rows, given their numbers.
        metrics: lists that grow with each pass, to be cut back when a step begins again.
    """

    def __init__(
        self, micro_batch_size: int, collate: Callable[[Sequence[int]], Batch], metrics: dict[str, list[float]]
    ) -> None:
        self.micro_batch_size = micro_batch_size
        self._collate = collate
        self._metrics = metrics
        self._step: _Step | None = None

    def run(
        self,
        step: int,
        batch: Batch,
        row_ids: torch.Tensor,
        one_pass: Callable[[Batch, int], torch.Tensor],
        zero_grad: Callable[[], None],
    ) -> torch.Tensor:
        """A pass, in one piece or several; where memory runs out, with half the rows a piece from then on.

        A backward pass that fails has added part of its gradients, so the step begins again: with the random numbers
        that it began with, and its earlier passes first.

        Args:
            step: optimizer steps done.
            batch: what the model reads.
            row_ids: the rows that `batch` is made of.
            one_pass: does a forward and backward pass, given the batch and the number of pieces; returns its loss.
            zero_grad: takes back what the step's passes have added so far.

        Raises:
            torch.OutOfMemoryError: if a single row does not fit.
        """
        if self._step is None or self._step.number != step:
            lengths = {name: len(values) for name, values in self._metrics.items()}
            self._step = _Step(step, generator_states(), lengths)
        loss = self._attempt(row_ids, one_pass, batch)
        while loss is None:
            self._halve(step, len(row_ids))
            self._begin_again(self._step, zero_grad)
            for earlier in [*self._step.done, row_ids]:
                loss = self._attempt(earlier, one_pass)
                if loss is None:
                    break
        self._step.done.append(row_ids)
        return loss

    def _attempt(
        self, row_ids: torch.Tensor, one_pass: Callable[[Batch, int], torch.Tensor], batch: Batch | None = None
    ) -> torch.Tensor | None:
        """The loss of a pass; None where memory ran out."""
        num_chunks = -(-len(row_ids) // self.micro_batch_size)
        try:
            if num_chunks == 1 and batch is not None:
                return one_pass(batch, 1)
            numbers = row_ids.tolist()
            losses = [one_pass(self._collate(part), num_chunks) for part in chunks(numbers, self.micro_batch_size)]
            return torch.stack(losses).sum()
        except RuntimeError as fault:
            if not is_out_of_memory(fault):
                raise
            return None

    def _halve(self, step: int, num_rows: int) -> None:
        micro_batch_size = min(self.micro_batch_size, num_rows) // 2
        if micro_batch_size == 0:
            raise torch.OutOfMemoryError("a single row does not fit")
        self.micro_batch_size = micro_batch_size
        console.note(
            f"out of memory in step {step + 1}: micro-batch size is now {micro_batch_size}, with more accumulation; "
            "the step's rows and gradients are unchanged"
        )

    def _begin_again(self, step: _Step, zero_grad: Callable[[], None]) -> None:
        free_memory()
        zero_grad()
        restore_generators(step.generators)
        for name, values in self._metrics.items():
            del values[step.metrics.get(name, 0) :]
