"""Which rows run: admission, steps, and what becomes of rows when a step fails. Used by one thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qlora_cli.errors import QloraError
from qlora_cli.model.device import free_memory, is_out_of_memory
from qlora_cli.serve.engine.batches import Batch, Filling, JoinedBatch, LoneBatch
from qlora_cli.serve.engine.rows import Row
from qlora_cli.serve.engine.served_model import ServedModel

MAX_FAULTS = 2
"""Failed steps after which a row is given up: the second one it made by itself."""


@dataclass(frozen=True)
class EngineLimits:
    """What an engine takes on at once."""

    max_rows: int = 32
    """Answers that are made at once."""

    max_waiting: int = 256
    """Requests that wait; one more is refused."""

    max_cache_tokens: int | None = None
    """Tokens whose keys and values are kept at once, padding included; None takes half of the free memory. An answer
    that is alone always runs."""

    tokens_between_steps: int = 512
    """Tokens of prompts that are read before running answers make their next step."""


class Scheduler:
    """Rows that wait, the one that is read in, and batches that make steps."""

    def __init__(self, model: ServedModel, limits: EngineLimits, max_cache_tokens: int) -> None:
        self._model = model
        self._limits = limits
        self._max_cache_tokens = max_cache_tokens
        self._max_rows = limits.max_rows  # becomes smaller when memory runs out
        self._returned: deque[Row] = deque()  # were running, and go first
        self._waiting: deque[Row] = deque()
        self._filling: Filling | None = None
        self._joined: dict[str, JoinedBatch] = {}
        self._lone: list[LoneBatch] = []

    def add(self, row: Row) -> None:
        """A row that waits from now on."""
        self._waiting.append(row)

    @property
    def num_running(self) -> int:
        """Rows in batches, and the one that is read in."""
        return len(self._running())

    @property
    def num_waiting(self) -> int:
        """Rows that nothing was computed for, or that have to be computed again."""
        return len(self._waiting) + len(self._returned)

    def advance(self) -> None:
        """Let cancelled rows go, read prompts, and make one step with every batch."""
        self._drop_cancelled()
        self._admit()
        for batch in self._batches():
            self._step(batch)
        if not self._running() and not self._returned:
            self._max_rows = self._limits.max_rows

    def end_all(self, error: str) -> None:
        """End every row as failed."""
        for row in [*self._running(), *self._returned, *self._waiting]:
            row.finish("failed", error)
        self._returned.clear()
        self._waiting.clear()
        self._forget()

    def _forget(self) -> None:
        self._filling = None
        self._joined, self._lone = {}, []

    def _batches(self) -> list[Batch]:
        return [*self._joined.values(), *self._lone]

    def _running(self) -> list[Row]:
        filling = [self._filling.row] if self._filling is not None else []
        return [*(row for batch in self._batches() for row in batch.rows), *filling]

    def _drop_cancelled(self) -> None:
        for row in [*self._running(), *self._returned, *self._waiting]:
            if row.ticket.is_cancelled:
                row.finish("cancelled")
        for queue in (self._returned, self._waiting):
            if any(row.is_finished for row in queue):
                left = [row for row in queue if not row.is_finished]
                queue.clear()
                queue.extend(left)
        if self._filling is not None and self._filling.row.is_finished:
            self._filling = None
        for batch in self._batches():
            self._drop_finished(batch)

    def _drop_finished(self, batch: Batch) -> None:
        try:
            batch.drop_finished()
        except Exception as fault:  # noqa: BLE001 - as in _step
            self._recover([row for row in batch.rows if not row.is_finished], fault)
            batch.rows = []
        self._joined = {lane: one for lane, one in self._joined.items() if one.rows}
        self._lone = [one for one in self._lone if one.rows]

    def _admit(self) -> None:
        """Read waiting rows, in order, until as many tokens were read as may be between two steps."""
        room = self._limits.tokens_between_steps
        while room > 0:
            if self._filling is None:
                row = self._next_row()
                if row is None:
                    return
                self._filling = Filling(self._model, row)
            room -= self._fill(self._filling, room)

    def _next_row(self) -> Row | None:
        queue = self._returned or self._waiting
        if not queue or not self._has_room(queue[0]):
            return None
        return queue.popleft()

    def _has_room(self, row: Row) -> bool:
        running = self._running()
        longest = max(one.most_tokens for one in [row, *running])
        is_within = (len(running) + 1) * longest <= self._max_cache_tokens
        return not running or (is_within and len(running) < self._max_rows)

    def _fill(self, filling: Filling, room: int) -> int:
        """Read the next stretch of a row; where it was the last, choose its first token and let it join.

        Returns:
            How many tokens were read.
        """
        row = filling.row
        try:
            num_read, logits = filling.advance(room)
            if logits is not None:
                self._filling = None
                self._take(row, logits)
                if not row.is_finished:
                    self._join(filling)
        except Exception as fault:  # noqa: BLE001 - as in _step
            self._filling = None
            self._recover([row], fault)
            return room
        return num_read

    def _join(self, filling: Filling) -> None:
        name = filling.row.request.model
        if filling.row.num_faults or not self._model.is_joinable(name):
            self._lone.append(LoneBatch(self._model, filling))
            return
        lane = self._model.lane_of(name)
        batch = self._joined.setdefault(lane, JoinedBatch(self._model))
        try:
            batch.join(filling)
        except Exception:
            # Some layers may have the row and others not: the whole batch is computed again.
            self._returned.extend(self._joined.pop(lane).rows)
            raise

    def _take(self, row: Row, logits: torch.Tensor) -> None:
        try:
            row.take(logits)
        except Exception as fault:  # noqa: BLE001 - concerns this answer alone
            row.finish("failed", in_a_line(fault))

    def _step(self, batch: Batch) -> None:
        rows = list(batch.rows)
        try:
            logits = batch.step()
        except Exception as fault:  # noqa: BLE001 - a library may raise anything, and other answers must go on
            batch.rows = []
            self._drop_finished(batch)
            self._recover(rows, fault)
            return
        for row, row_logits in zip(rows, logits, strict=True):
            self._take(row, row_logits)
        self._drop_finished(batch)

    def _recover(self, rows: Sequence[Row], fault: Exception) -> None:
        """Have rows of a failed step computed again, from the tokens they have; give up those that cannot be.

        Where memory ran out, fewer rows run from then on. Where anything else happened, each row goes on by itself, so
        that the one which was the cause fails alone.
        """
        if isinstance(fault, RuntimeError) and is_out_of_memory(fault):
            free_memory()
            num_others = self.num_running + len(self._returned)
            self._max_rows = max(1, (len(rows) + num_others) // 2)
            given_up = list(rows) if len(rows) == 1 and not self.num_running else []
        else:
            for row in rows:
                row.num_faults += 1
            given_up = [row for row in rows if row.num_faults >= MAX_FAULTS]
        for row in given_up:
            row.finish("failed", in_a_line(fault))
        self._returned.extendleft(row for row in reversed(rows) if not row.is_finished)


def in_a_line(fault: Exception) -> str:
    """What happened, for the client.

    >>> in_a_line(RuntimeError("shapes differ\\nat 3"))
    'the model failed: RuntimeError: shapes differ at 3'
    """
    if isinstance(fault, QloraError):
        return fault.problems[0].text
    if isinstance(fault, RuntimeError) and is_out_of_memory(fault):
        return "no memory is left for this request: make its prompt or its answer shorter"
    return "the model failed: " + " ".join(f"{type(fault).__name__}: {fault}".split())[:300]
