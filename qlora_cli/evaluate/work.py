"""Batches of questions: what is known already is not computed again, and where memory runs short they are halved."""

# B = questions in a batch

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, TypeVar

from qlora_cli import console
from qlora_cli.errors import ResourceError
from qlora_cli.evaluate.kept import Kept, Value, key_of
from qlora_cli.model.device import free_memory, is_out_of_memory

Item = TypeVar("Item")


@dataclass
class Work:
    """What the tasks of an evaluation share."""

    batch_size: int = 8
    kept: Kept = field(default_factory=Kept)
    on_done: Callable[[int], None] = lambda count: None
    """Called with the number of questions that were just done."""

    _fits: int | None = None
    """Questions at a time, once more did not fit."""

    def batches(
        self,
        model_key: str,
        settings: Sequence[Any],
        items: Sequence[Item],
        identity: Callable[[Item], Any],
        compute: Callable[[Sequence[Item]], list[Value]],
        size_of: Callable[[Item], int],
        together: Callable[[Item], Any] = lambda item: None,
    ) -> list[Value]:
        """The result of each item, in their order.

        Items of like size share a batch, the largest first, so that too little memory shows immediately. The batches
        are the same whatever is known already; one of which any result is missing is computed as a whole, so that an
        evaluation that was stopped ends with the very numbers of one that was not.

        Args:
            model_key: identity of the model and its precision.
            settings: all else that results depend on.
            items: what is asked.
            identity: what of an item the result depends on, as JSON.
            compute: the results of some items together.
            size_of: tokens of an item.
            together: what items must agree in to share a batch.
        """
        keys = [key_of(model_key, *settings, identity(item)) for item in items]
        order = sorted(range(len(items)), key=lambda index: size_of(items[index]), reverse=True)
        for batch in self._cut(order, [together(item) for item in items]):
            if any(self.kept.get(keys[index]) is None for index in batch):
                values = self._halving([items[index] for index in batch], compute)
                self.kept.add([keys[index] for index in batch], values)
            self.on_done(len(batch))
        return [self._known(key) for key in keys]

    def _cut(self, order: Sequence[int], kinds: Sequence[Any]) -> Iterator[list[int]]:
        """Batches of items that follow each other and are of one kind."""
        for _, group in groupby(order, key=lambda index: kinds[index]):
            indices = list(group)
            for start in range(0, len(indices), self.batch_size):
                yield indices[start : start + self.batch_size]

    def _known(self, key: str) -> Value:
        value = self.kept.get(key)
        assert value is not None  # just computed
        return value

    def _halving(self, items: Sequence[Item], compute: Callable[[Sequence[Item]], list[Value]]) -> list[Value]:
        """Compute in pieces that fit; a size that did not fit is not tried again."""
        values: list[Value] = []
        while len(values) < len(items):
            at_once = min(len(items) - len(values), self._fits or len(items))
            try:
                values += compute(items[len(values) : len(values) + at_once])
                continue
            except RuntimeError as fault:
                if not is_out_of_memory(fault):
                    raise
                why = str(fault).splitlines()[0]
            self._shrink(at_once, why)  # outside of the block, where the error holds no tensors any more
        return values

    def _shrink(self, at_once: int, why: str) -> None:
        if at_once == 1:
            raise ResourceError(
                f"memory is too small for a single question: {why}",
                hint="shorten answers by --max-new-tokens, or rows by --data FILE with shorter ones",
            )
        if self._fits is None:
            console.warn(f"memory is too small for {at_once} questions at a time, and is asked for fewer from here on")
        self._fits = at_once // 2
        free_memory()
