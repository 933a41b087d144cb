"""The raw rows of a source, a batch at a time, as workers get them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qlora_cli.data.example import RawRow
from qlora_cli.data.read.column_mapping import NUM_ROWS, Where, resolve_source
from qlora_cli.data.read.sources import parse_row, read_raw
from qlora_cli.errors import DataError
from qlora_cli.recipe.data_schema import SourceSection

MAX_BATCH_ROWS = 512
MAX_BATCH_BYTES = 4 << 20


@dataclass(frozen=True)
class RawBatch:
    """Rows of one source, as they are handed to a worker."""

    source_number: int
    """Place of the source among all that are read."""

    source: SourceSection
    format: str
    rows: list[RawRow]


def raw_batches(
    source: SourceSection, source_number: int = 0, *, where: Where = "train", alone: bool = True
) -> Iterator[RawBatch]:
    """The source's rows in batches, with the format that its first readable row shows.

    Args:
        source: of the recipe.
        source_number: its place among all that are read.
        where: the key that it is under, for the hint that maps its columns.
        alone: whether it is the only one there.

    Raises:
        DataError: if the source cannot be read, or no format fits.
    """
    rows = read_raw(source)
    format_name: str | None = None
    for batch in _in_batches(rows):
        if format_name is None:
            format_name = _format_of(source, batch, where, alone=alone)
        # Nothing in the batch can be parsed: the faults are what is reported, whatever the format.
        yield RawBatch(source_number, source, format_name or source.format or "text", batch)


def _in_batches(rows: Iterator[RawRow]) -> Iterator[list[RawRow]]:
    batch: list[RawRow] = []
    num_bytes = 0
    for raw in rows:
        batch.append(raw)
        num_bytes += len(raw.payload) if isinstance(raw.payload, bytes) else 1024
        if len(batch) == MAX_BATCH_ROWS or num_bytes >= MAX_BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


def _format_of(source: SourceSection, batch: Sequence[RawRow], where: Where, *, alone: bool) -> str | None:
    rows = []
    for raw in batch:
        try:
            rows.append((raw.place, parse_row(raw)))
        except DataError:
            continue
        if len(rows) == NUM_ROWS:
            break
    return resolve_source(source, rows, where, alone=alone) if rows else None
