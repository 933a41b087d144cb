"""The loss on held-out rows during training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from peft import PeftModel

from qlora_cli import console
from qlora_cli.data.collator import Collator
from qlora_cli.data.packed_rows import PackedRows
from qlora_cli.model.device import free_memory, is_out_of_memory
from qlora_cli.model.eval_loss import Score, summed_loss
from qlora_cli.progress import Phase, progress
from qlora_cli.train.processes.collectives import ProcessGroup
from qlora_cli.train.step.microbatch import chunks


class EvalLoss:
    """Held-out rows, which the processes of a run share among them.

    Args:
        is_cut: asked before each batch; once it holds no more are scored.
        batch_size: rows in one forward pass; fewer from where memory has run out on.
    """

    def __init__(
        self,
        rows: PackedRows,
        collator: Collator,
        group: ProcessGroup,
        is_cut: Callable[[], bool] = bool,
        *,
        batch_size: int,
    ) -> None:
        self._rows = rows
        self._collator = collator
        self._group = group
        self._batch_size = self._rows_at_once = batch_size
        self._is_cut = is_cut

    def compute(self, model: PeftModel) -> Score | None:
        """Mean loss per trained token over all rows, those of the other processes included; None where it was cut.

        Raises:
            torch.OutOfMemoryError: if a single row does not fit.
        """
        total, num_tokens, num_cut = self._group.all_reduce_sum([*self._summed_loss(model), self._is_cut()])
        if num_cut:
            return None
        return Score(loss=total / num_tokens, num_tokens=int(num_tokens))

    def _summed_loss(self, model: PeftModel) -> tuple[float, int]:
        while True:
            try:
                with progress("evaluating", len(self._starts)) as phase:
                    return summed_loss(model, self._batches(phase))
            except RuntimeError as fault:
                if not is_out_of_memory(fault) or self._rows_at_once == 1:
                    raise
            self._rows_at_once //= 2
            console.note(f"out of memory while evaluating: batch size is now {self._rows_at_once}")
            free_memory()

    @property
    def _starts(self) -> range:
        """First rows of the batches in this process's share: every n-th batch of n processes."""
        size = self._batch_size
        return range(size * self._group.rank, len(self._rows.dataset), size * self._group.world_size)

    def _batches(self, phase: Phase) -> Iterator[dict[str, Any]]:
        dataset, size = self._rows.dataset, self._batch_size
        for start in self._starts:
            if self._is_cut():
                return
            numbers = range(start, min(start + size, len(dataset)))
            for part in chunks(numbers, self._rows_at_once):
                yield self._collator([dataset[number] for number in part])
            phase.advance()
