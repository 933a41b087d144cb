"""The loss on given rows: in nats for each token, as perplexity, and in bits for each byte of the text."""

# B = rows in a batch, L = longest row

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from qlora_cli.constants import IGNORE_INDEX
from qlora_cli.data.collator import Collator
from qlora_cli.data.packing import unpacked
from qlora_cli.data.render.renderer import Renderer, TokenRow
from qlora_cli.errors import ArgumentError
from qlora_cli.evaluate.kept import Value, key_of
from qlora_cli.evaluate.scores import Measured, TaskScores, exp, numbered
from qlora_cli.evaluate.tasks.task import Subject
from qlora_cli.evaluate.work import Work
from qlora_cli.model.embedding_limits import check_length, check_tokens
from qlora_cli.model.eval_loss import row_losses

REMEDY = "shorten that row, or name others with --data FILE"

Rows = Callable[[Renderer], list[TokenRow]]
"""Gives the rows as the tokenizer of one model has them."""


class LossTask:
    """Rows whose trained tokens are predicted.

    Args:
        name: of the task.
        rows: the same texts for every model; the tokens are those of its tokenizer.
        by_source: whether each file of rows has figures of its own, where there are several.
    """

    def __init__(self, name: str, rows: Rows, *, by_source: bool = True) -> None:
        self.name = name
        self._read = rows
        self._by_source = by_source
        self._rows: dict[str, list[TokenRow]] = {}

    @property
    def num_steps(self) -> int:
        """Rows."""
        return max(map(len, self._rows.values()), default=0)

    def rows(self, renderer: Renderer) -> list[TokenRow]:
        """The rows in a model's tokens; read once for all models with the same tokenizer and template."""
        if renderer.fingerprint not in self._rows:
            self._rows[renderer.fingerprint] = [row for row in self._read(renderer) if row.num_trained_tokens]
        return self._rows[renderer.fingerprint]

    def check(self, subject: Subject) -> None:
        """Refuse rows without a trained token, and those that the model has no embeddings or positions for."""
        rows = self.rows(subject.renderer)
        if not rows:
            raise ArgumentError(f"no row of '{self.name}' holds an assistant's turn to measure the loss on")
        name, model = subject.tuned.source.model.base_model, subject.tuned.model
        check_tokens(model, subject.tuned.tokenizer, name, lambda: max(max(row.input_ids) for row in rows))
        check_length(model, name, max(len(row.input_ids) for row in rows), remedy=REMEDY)

    def run(self, subject: Subject, work: Work) -> TaskScores:
        """The loss of each row, summed over its tokens."""
        rows = self.rows(subject.renderer)
        collate = Collator(subject.tuned.tokenizer.pad_token_id)

        def compute(batch: Sequence[TokenRow]) -> list[Value]:
            tensors = collate([asdict(row) for row in unpacked(batch)])
            return [{"nats": nats} for nats, _ in row_losses(subject.tuned.model, tensors)]

        values = work.batches(subject.key, ["loss"], rows, _identity, compute, lambda row: len(row.input_ids))
        nats = [value["nats"] for value in values]
        tokens = [float(_num_predicted(row)) for row in rows]
        num_bytes = [float(_num_bytes(row, subject.tuned.tokenizer)) for row in rows]
        bits = [value / math.log(2) for value in nats]
        measures = {
            "loss": Measured(nats, False, "nats", "tokens", tokens),
            "perplexity": Measured(nats, False, "ratio", "tokens", tokens, shown_as=exp, is_judged=False),
            "bits_per_byte": Measured(bits, False, "bits", "bytes", num_bytes, is_judged=False),
        }
        sources = [row.place.file for row in rows] if self._by_source else None
        places = numbered([str(row.place) for row in rows])
        return TaskScores(places, measures, sources, row_ids=[key_of(*_identity(row)) for row in rows])


def _identity(row: TokenRow) -> list[list[int]]:
    return [row.input_ids, row.labels]


def _num_predicted(row: TokenRow) -> int:
    """Tokens with a label that something predicts: the first has nothing before it."""
    return len(row.labels) - 1 - row.labels[1:].count(IGNORE_INDEX)


def _num_bytes(row: TokenRow, tokenizer: Any) -> int:
    """UTF-8 bytes of the text of the predicted tokens, special ones left out."""
    trained = [label for label in row.labels[1:] if label != IGNORE_INDEX]
    return len(tokenizer.decode(trained, skip_special_tokens=True).encode())
