"""Rows of Parquet and Arrow files, and of folders that `datasets` saved, one batch at a time.

One schema covers all rows of such a file, so a message without tool calls, or an argument that only another row's
call has, is stored as null; inside nested values those nulls are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet

from qlora_cli.data.example import Place, RawRow, Row
from qlora_cli.data.read.error_text import names_of, without_nulls
from qlora_cli.errors import DataError

BATCH_BYTES = 4 << 20
MAX_BATCH_ROWS = 1000
BUFFER_BYTES = 1 << 20
"""Of each column while a Parquet file is read; without it whole column chunks are held."""

READ_FAULTS = (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError)
"""Errors of broken columnar data: Arrow's own, and Python's when broken metadata or values are converted."""


def read_parquet(path: Path) -> Iterator[RawRow]:
    """Rows of a Parquet file. Read straight from it: the builder of `datasets` first copies it into a cache.

    Raises:
        DataError: if it is none, or a part of it is broken.
    """
    try:
        file = pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER_BYTES)
        num_bytes = sum(file.metadata.row_group(at).total_byte_size for at in range(file.num_row_groups))
        # One thread: the cores tokenize what was read before.
        batches = file.iter_batches(_batch_rows(num_bytes, file.metadata.num_rows), use_threads=False)
    except READ_FAULTS as error:
        raise DataError(f"not a Parquet file: {first_line(error)}", place=str(path)) from error
    with file:
        yield from _placed((pyarrow.Table.from_batches([batch]) for batch in batches), str(path))


def read_arrow(path: Path) -> Iterator[RawRow]:
    """Rows of an Arrow file as `datasets` writes it.

    Raises:
        DataError: if it is none, or a part of it is broken.
    """
    try:
        dataset = datasets.Dataset.from_file(str(path))
    except READ_FAULTS as error:
        raise DataError(f"not an Arrow file of `datasets`: {first_line(error)}", place=str(path)) from error
    return rows_of_dataset(dataset, str(path))


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def read_saved(path: Path, split: str | None) -> Iterator[RawRow]:
    """Rows of a Dataset, or of one split of a DatasetDict, that `save_to_disk` wrote.

    Raises:
        DataError: if it does not load, or has no such split.
    """
    try:
        saved = datasets.load_from_disk(str(path))
    except READ_FAULTS as error:
        raise DataError(f"the saved dataset cannot be read: {first_line(error)}", place=str(path)) from error
    if isinstance(saved, datasets.Dataset):
        if split is not None:
            raise DataError(
                f"the saved dataset has no splits, `split: {split}` was asked for",
                place=str(path),
                hint="leave `split` out",
            )
        return rows_of_dataset(saved, str(path))
    name = split or "train"
    if name not in saved:
        raise DataError(
            f"no split '{name}'", place=str(path), hint=f"set `split` to one of: {', '.join(map(str, saved))}"
        )
    return rows_of_dataset(saved[name], f"{path}[{name}]")


def rows_of_dataset(dataset: datasets.Dataset, name: str) -> Iterator[RawRow]:
    """Rows of a loaded dataset; images and sounds stay bytes.

    Args:
        dataset: backed by files, of which one batch after the other is looked at.
        name: of the source, for the places.

    Raises:
        DataError: if a part of it is broken.
    """
    try:
        dataset.data.validate()  # of the buffers' sizes; what they hold is looked at batch by batch
        size = _batch_rows(dataset.data.nbytes, len(dataset.data))
    except READ_FAULTS as error:
        raise DataError(f"cannot be read: {first_line(error)}", place=name) from error
    starts = range(0, len(dataset), size)
    parts = (dataset.select(range(start, min(start + size, len(dataset)))) for start in starts)
    return _placed(parts, name)


def _batch_rows(num_bytes: int, num_rows: int) -> int:
    """Rows that take about BATCH_BYTES."""
    return max(1, min(MAX_BATCH_ROWS, BATCH_BYTES * num_rows // max(1, num_bytes)))


def _placed(parts: Iterator[pyarrow.Table | datasets.Dataset], name: str) -> Iterator[RawRow]:
    number = 0
    while True:
        try:
            part = next(parts, None)
            rows = None if part is None else _rows_of(part)
        except READ_FAULTS as error:
            place = Place(name, None, number + 1)
            raise DataError(f"cannot be read from here on: {first_line(error)}", place=str(place)) from error
        if rows is None:
            return
        for row in rows:
            number += 1
            yield RawRow(Place(name, None, number), {key: without_nulls(value) for key, value in row.items()})


def _rows_of(part: pyarrow.Table | datasets.Dataset) -> list[Row]:
    """Rows as Python values. Broken offsets would be followed out of the file's memory, so they are looked at first."""
    table = part.data if isinstance(part, datasets.Dataset) else part
    table.validate(full=True)
    if len(set(table.column_names)) < len(table.column_names):
        raise ValueError(f"a column occurs twice: {names_of(table.column_names)}")
    if isinstance(part, pyarrow.Table):
        if b"huggingface" not in (part.schema.metadata or {}):
            return list(part.to_pylist())
        part = datasets.Dataset(part, fingerprint="rows")  # decodes columns that `datasets` keeps as JSON text
    return list(part.to_list())


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
