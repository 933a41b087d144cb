"""The way of one row: parse, check, clean, render, cut. It depends on no other row, so any process can do it."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from qlora_cli.data.answer_rows import rows_per_answer
from qlora_cli.data.clean import Cleaner
from qlora_cli.data.duplicates import MinHasher, exact_digest
from qlora_cli.data.example import Example, Place, RawRow, Row, UnreadableRow
from qlora_cli.data.raw_batches import RawBatch, raw_batches
from qlora_cli.data.read.column_mapping import Where
from qlora_cli.data.read.examples import example_of
from qlora_cli.data.read.sources import parse_row
from qlora_cli.data.rejection import Rejection, RejectionReason, RowError
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.data.row_warnings import RowWarner, RowWarning
from qlora_cli.data.spool import TokenBatch, batch_of
from qlora_cli.data.token_row import TokenRow, Unprinted
from qlora_cli.data.truncation import Cutter, is_splittable
from qlora_cli.data.unread import KeyCheck, Mention, Mentions, unread_in_row
from qlora_cli.errors import DataError
from qlora_cli.recipe.data_schema import DataSection, SourceSection


@dataclass(slots=True)
class RowResult:
    """Result of one row: kept, cut or rejected."""

    raw: RawRow
    number: int
    """Of the row in its batch; several passages may come from one."""

    example: Example | None = None
    whole: Example | None = None
    """The example of which this is one row; the same where an example is a row."""

    row: TokenRow | None = None
    """As it is trained on; None where it is rejected."""

    rejection: Rejection | None = None
    num_tokens: int | None = None
    """Before any cut; None where it could not be rendered."""

    is_cut: bool = False
    """Shortened, or to be split into pieces when it is packed."""

    is_splittable: bool = False
    """Too long, and of the kind that `truncation: split` cuts into pieces."""

    unread: list[Mention] = field(default_factory=list)
    """Parts of the row without effect."""


@dataclass
class BatchResult:
    """Result of a batch of rows."""

    tokens: TokenBatch
    """The rows that are kept; `file` is their number in `files`."""

    files: list[str]
    kept: list[int]
    """Numbers of these rows in the batch."""

    rejections: list[Rejection]
    num_read: int
    lengths: np.ndarray
    """Tokens of each row that was rendered, before any cut."""

    longest: Place | None
    cut: list[Place]
    num_splittable: int
    """Rows that are too long, and that `truncation: split` would cut or did cut into pieces."""

    ends_a_turn: bool
    """Whether a token that ends a turn is trained in any row."""

    observed: Counter[RowWarning] = field(default_factory=Counter)
    first_observed: dict[RowWarning, Place] = field(default_factory=dict)
    mentions: Mentions = field(default_factory=Mentions)
    """Parts of the kept rows without effect."""

    unprinted: Counter[Unprinted] = field(default_factory=Counter)
    first_unprinted: dict[Unprinted, Place] = field(default_factory=dict)
    digests: list[bytes] = field(default_factory=list)
    """Of the text of each kept row, where duplicates are looked for."""

    signatures: list[bytes | None] = field(default_factory=list)
    """MinHash of each kept row, where near duplicates are looked for; None for a text too short for one."""


class RowPipeline:
    """Takes batches of raw rows to token rows, as a recipe's data section says."""

    def __init__(self, data: DataSection, renderer: Renderer, *, duplicates: str | None = None) -> None:
        """
        Args:
            data: lengths, cuts and cleaning.
            renderer: of the base model's tokenizer.
            duplicates: `exact` or `near`, to hand over what finds them.
        """
        self._max_length = data.max_length
        self._is_row_per_answer = data.row_per == "answer"
        self._renderer = renderer
        self._cleaner = Cleaner(data.clean)
        self._cutter = None
        if data.truncation in ("cut_prompt", "cut_middle_turns"):
            self._cutter = Cutter(renderer, data.max_length, data.truncation)
        self._required = frozenset(data.clean.required if data.clean else ())
        self._is_split = data.truncation == "split"
        self._observer = RowWarner(renderer)
        self._key_check = KeyCheck(renderer)
        self._duplicates = duplicates
        self._hasher = MinHasher() if duplicates == "near" else None

    def preview(
        self, source: SourceSection, first: int, num_rows: int, *, where: Where = "train", alone: bool = True
    ) -> Iterator[RowResult]:
        """Results of some rows of a source, counted from 0; `where` and `alone` as in `raw_batches`.

        Raises:
            DataError: if the source cannot be read, or no format fits.
        """
        batches = raw_batches(source, where=where, alone=alone)
        rows = ((batch, raw) for batch in batches for raw in batch.rows)
        for batch, raw in islice(rows, first, first + num_rows):
            yield from self._passages(replace(batch, rows=[raw]))

    def __call__(self, batch: RawBatch) -> BatchResult:
        """The rows of a batch that can be trained on, and the rejections of the others."""
        passages = self._passages(batch)
        kept = [passage for passage in passages if passage.row is not None]
        rows = [passage.row for passage in kept if passage.row is not None]
        files = list(dict.fromkeys(row.place.file for row in rows))
        numbers = {name: number for number, name in enumerate(files)}
        tokens = batch_of(rows, [numbers[row.place.file] for row in rows], [_digest(row.input_ids) for row in rows])
        rendered = [passage for passage in passages if passage.num_tokens is not None]
        outcome = BatchResult(
            tokens=tokens,
            files=files,
            kept=[passage.number for passage in kept],
            rejections=[passage.rejection for passage in passages if passage.rejection is not None],
            num_read=len(batch.rows),
            lengths=np.array([passage.num_tokens for passage in rendered], np.int32),
            longest=max(rendered, key=lambda passage: passage.num_tokens or 0).raw.place if rendered else None,
            cut=[passage.raw.place for passage in kept if passage.is_cut],
            num_splittable=sum(passage.is_splittable for passage in passages),
            ends_a_turn=any(not self._renderer.end_of_turn_ids.isdisjoint(row.labels) for row in rows),
        )
        self._look_at(kept, outcome)
        return outcome

    def _look_at(self, kept: Iterable[RowResult], outcome: BatchResult) -> None:
        before = None
        for passage in kept:
            assert passage.example is not None  # a kept row went the whole way
            assert passage.row is not None
            for observation in self._observer.observe(passage.example, passage.row):
                outcome.observed[observation] += 1
                outcome.first_observed.setdefault(observation, passage.raw.place)
            for unprinted in passage.row.unprinted:
                outcome.unprinted[unprinted] += 1
                outcome.first_unprinted.setdefault(unprinted, passage.raw.place)
            assert passage.whole is not None
            is_first = passage.number != before  # rows of one conversation repeat each other, and are looked at once
            before = passage.number
            keys = self._key_check.unread_keys(passage.example, passage.row)
            unread = passage.unread if is_first else ()
            if unread or keys:
                outcome.mentions.add((*unread, *keys), passage.raw.place)
            if self._duplicates:
                digest = exact_digest(passage.whole)
                if not is_first:
                    digest = hashlib.blake2b(digest + outcome.digests[-1], digest_size=len(digest)).digest()
                outcome.digests.append(digest)
            if self._hasher:
                outcome.signatures.append(self._hasher.signature(passage.whole) if is_first else None)

    def _passages(self, batch: RawBatch) -> list[RowResult]:
        passages = [passage for number, raw in enumerate(batch.rows) for passage in self._read(raw, number, batch)]
        readable = [passage for passage in passages if passage.example is not None]
        rendered = self._renderer.render_each([passage.example for passage in readable if passage.example])
        for passage, row in zip(readable, rendered, strict=True):
            if isinstance(row, DataError):
                passage.rejection = _rejection(passage.raw, row, RejectionReason.TEMPLATE)
            else:
                self._take(passage, row)
        return passages

    def _read(self, raw: RawRow, number: int, batch: RawBatch) -> list[RowResult]:
        cause = RejectionReason.MALFORMED
        try:
            row = parse_row(raw)
            self._cleaner.check_row(row, raw.place)
            cause = RejectionReason.FORMAT
            example, row = example_of(row, raw.place, batch.source, batch.format)
            unread = [
                (kind, name)
                for kind, name in unread_in_row(row, batch.format, batch.source.columns)
                if name not in self._required and name not in batch.source.leave_out
            ]
            whole = self._cleaner.clean(example)
            rows = rows_per_answer(whole) if self._is_row_per_answer else [whole]
            return [RowResult(raw, number, part, whole, unread=unread) for part in rows]
        except DataError as error:
            return [RowResult(raw, number, rejection=_rejection(raw, error, cause))]

    def _take(self, passage: RowResult, row: TokenRow) -> None:
        """Note the rendered row, cut if it is too long and may be."""
        passage.num_tokens = len(row.input_ids)
        if passage.num_tokens > self._max_length:
            assert passage.example is not None  # it was rendered
            passage.is_splittable = is_splittable(passage.example)
            cut = self._cutter.cut(passage.example) if self._cutter else None
            if self._is_split and passage.is_splittable:
                cut = passage.example, row
            if cut is None:
                fault = RowError(
                    RejectionReason.TOO_LONG, f"{passage.num_tokens:,} tokens, max_length is {self._max_length:,}"
                )
                passage.rejection = _rejection(passage.raw, fault, RejectionReason.TOO_LONG)
                return
            passage.example, row = cut
            if not self._is_row_per_answer:
                passage.whole = passage.example
            passage.is_cut = True
        if not row.num_trained_tokens:
            fault = RowError(
                RejectionReason.NOTHING_TRAINED,
                "the row has nothing to learn: no token of it is trained",
                hint="leave out such rows, or use a chat template that prints the assistant's turns",
            )
            passage.rejection = _rejection(passage.raw, fault, RejectionReason.NOTHING_TRAINED)
            return
        passage.row = row


def _rejection(raw: RawRow, error: DataError, cause: RejectionReason) -> Rejection:
    problem = error.problems[0]
    if isinstance(error, RowError):
        cause = error.cause
    return Rejection(raw.place, cause, problem.text, problem.hint, as_read(raw))


def as_read(raw: RawRow) -> Row | str:
    """The row as `rejected.jsonl` holds it: its text where it cannot be parsed."""
    if isinstance(raw.payload, UnreadableRow):
        return raw.payload.content
    try:
        return parse_row(raw)
    except DataError:
        return str(raw.payload, "utf-8", "replace").rstrip("\r\n") if isinstance(raw.payload, bytes) else ""


def _digest(input_ids: list[int]) -> bytes:
    return hashlib.blake2b(array("i", input_ids), digest_size=16).digest()
