"""Rows on their way through the model: the prompt first, in stretches, then token by token beside other rows."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from transformers.cache_utils import DynamicCache

from qlora_cli.serve.engine.rows import Row
from qlora_cli.serve.engine.served_model import ServedModel
from qlora_cli.serve.engine.stacked_cache import StackedCache


class Filling:
    """A row whose tokens are read in, by itself, before it joins a batch."""

    def __init__(self, model: ServedModel, row: Row) -> None:
        self.row = row
        self.cache: Any = None
        self._model = model
        self._is_cut = model.is_joinable(row.request.model)
        self._num_done = 0

    def advance(self, num_tokens: int) -> tuple[int, torch.Tensor | None]:
        """Read the next stretch of the row.

        Args:
            num_tokens: tokens that may be read; a cache that is not keys and values takes the row whole.

        Returns:
            How many were read, and the logits behind the last one once all are: float32, of shape [vocabulary].
        """
        ids = self.row.ids
        end = min(len(ids), self._num_done + num_tokens) if self._is_cut else len(ids)
        if self._is_cut and self.cache is None:
            self.cache = DynamicCache()
        name = self.row.request.model
        stretch = torch.tensor([ids[self._num_done : end]], device=self._model.device)
        mask = torch.ones((1, end), dtype=torch.long, device=self._model.device)
        outcome = self._model.run([name], stretch, mask, self.cache, use_cache=self._model.keeps_cache(name))
        self.cache = outcome.cache
        num_read, self._num_done = end - self._num_done, end
        return num_read, outcome.logits[0] if end == len(ids) else None


class Batch(Protocol):
    """Rows that make a step together."""

    rows: list[Row]

    def step(self) -> torch.Tensor:
        """Logits behind the last token of each row: float32, of shape [rows, vocabulary]."""

    def drop_finished(self) -> None:
        """Let go of rows that are finished, and of what was kept for them."""


class JoinedBatch:
    """Rows whose keys and values are stacked."""

    def __init__(self, model: ServedModel) -> None:
        self.rows: list[Row] = []
        self._model = model
        self._stack = StackedCache()

    def join(self, filled: Filling) -> None:
        """Take in a row whose tokens are all in its cache but the one that was chosen last."""
        self._stack.join(filled.cache, len(filled.row.ids) - 1)
        self.rows.append(filled.row)

    def step(self) -> torch.Tensor:
        """As `Batch`."""
        last = torch.tensor([[row.ids[-1]] for row in self.rows], device=self._model.device)
        names = [row.request.model for row in self.rows]
        return self._model.run(names, last, self._stack.next_mask(), self._stack.cache).logits

    def drop_finished(self) -> None:
        """As `Batch`."""
        kept = [index for index, row in enumerate(self.rows) if not row.is_finished]
        if len(kept) < len(self.rows):
            self._stack.keep(kept)
            self.rows = [self.rows[index] for index in kept]


class LoneBatch:
    """One row with the cache that the model made for it; without a cache its whole text is computed at each step."""

    def __init__(self, model: ServedModel, filled: Filling) -> None:
        self.rows = [filled.row]
        self._model = model
        self._cache = filled.cache

    def step(self) -> torch.Tensor:
        """As `Batch`."""
        [row] = self.rows
        name = row.request.model
        is_kept = self._cache is not None and self._model.keeps_cache(name)
        ids = row.ids[-1:] if is_kept else row.ids
        mask = torch.ones((1, len(row.ids)), dtype=torch.long, device=self._model.device)
        tokens = torch.tensor([ids], device=self._model.device)
        outcome = self._model.run([name], tokens, mask, self._cache if is_kept else None, use_cache=is_kept)
        self._cache = outcome.cache if is_kept else None
        return outcome.logits

    def drop_finished(self) -> None:
        """As `Batch`."""
        self.rows = [row for row in self.rows if not row.is_finished]
