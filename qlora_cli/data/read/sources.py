"""From a recipe's data source to rows, each with its place. Memory does not grow with the number of rows.

Reading has two steps, so that the second can be spread over processes: `read_raw` takes a source apart into rows,
`parse_row` makes one row's text a dict. Each kind of file has its module: `jsonl`, `json_array`, `csv_rows` (these
name lines) and `columnar`; `hub` reads what is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from qlora_cli.data.example import Place, RawRow, Row, UnreadableRow
from qlora_cli.data.problems import RowProblems
from qlora_cli.data.read.columnar import is_saved_dataset, read_arrow, read_parquet, read_saved
from qlora_cli.data.read.csv_rows import read_csv
from qlora_cli.data.read.folders import files_of_folder, files_of_pattern, has_pattern
from qlora_cli.data.read.hub import read_hub
from qlora_cli.data.read.json_array import read_json
from qlora_cli.data.read.jsonl import parse_line, read_jsonl
from qlora_cli.data.read.places import TEXT_SUFFIXES, file_suffix, is_on_hub, missing_file
from qlora_cli.data.rejection import RejectionReason, RowError
from qlora_cli.errors import DataError
from qlora_cli.recipe.data_schema import SourceSection

FILE_READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
"""Suffix -> reader. The text kinds may also end in .gz."""


def read_raw(source: SourceSection) -> Iterator[RawRow]:
    """The rows of the source in its order, JSON not parsed yet. A relative path starts at the current directory.

    Raises:
        DataError: from the first row on, a source that is missing or that cannot be read any further. Faults of a
            single row wait for `parse_row`.
    """
    rows = _reader(source)
    first = next(rows, None)
    if first is None:
        raise DataError("the source holds no rows", place=source.path)
    yield first
    yield from rows


def parse_row(raw: RawRow) -> Row:
    """The row as column -> value.

    Raises:
        RowError: if it is no JSON object, or its reader could not take it apart.
    """
    payload = raw.payload
    if isinstance(payload, bytes):
        return parse_line(payload, raw.place, raw.offset)
    if isinstance(payload, UnreadableRow):
        raise RowError(RejectionReason.MALFORMED, payload.text, place=str(raw.place), hint=payload.hint)
    return payload


def read_rows(source: SourceSection) -> Iterator[tuple[Place, Row]]:
    """The rows that can be read, parsed.

    Raises:
        DataError: as `read_raw`; and after the last row, every row that could not be read (the first 20 in full).
    """
    problems = RowProblems()
    try:
        for raw in read_raw(source):
            try:
                row = parse_row(raw)
            except RowError as error:
                problems.add_error(error)
            else:
                yield raw.place, row
    except DataError as error:
        problems.add_error(error)
    problems.raise_if_any()


def source_files(source: SourceSection) -> list[Path]:
    """The files whose bytes make the source, in the order in which they are read; none for a Hub dataset.

    Raises:
        DataError: if the source is missing.
    """
    path = Path(source.path).expanduser()
    if path.is_dir() and is_saved_dataset(path):
        return sorted(entry for entry in path.rglob("*") if entry.is_file())
    return [] if is_on_hub(source.path) else _local_files(source, path)


def _reader(source: SourceSection) -> Iterator[RawRow]:
    path = Path(source.path).expanduser()
    if is_on_hub(source.path):
        return read_hub(source)
    if path.is_dir() and is_saved_dataset(path):
        _refuse_keys(source, "subset", "revision", "streaming")
        return read_saved(path, source.split)
    files = _local_files(source, path)
    readers = [_file_reader(file) for file in files]
    return chain.from_iterable(read(file) for read, file in zip(readers, files, strict=True))


def _local_files(source: SourceSection, path: Path) -> list[Path]:
    """The files of a file, folder or pattern."""
    _refuse_keys(source, "revision", "streaming")
    if path.is_dir():
        return files_of_folder(path, source.split, source.subset, _file_reader, tuple(FILE_READERS))
    _refuse_keys(source, "subset")
    if path.exists():
        _refuse_keys(source, "split")
        return [path]
    if has_pattern(source.path):
        return files_of_pattern(str(path), source.split, _file_reader)
    raise missing_file(path)


def _refuse_keys(source: SourceSection, *keys: str) -> None:
    """Keys that only other kinds of source take."""
    for key in keys:
        value = getattr(source, key)
        if value:
            others = {"split": "Hub datasets and folders", "subset": "Hub datasets and folders"}
            raise DataError(
                f"`{key}: {str(value).lower() if value is True else value}` is for {others.get(key, 'Hub datasets')}, "
                f"and this is a local path{', always read row by row' if key == 'streaming' else ''}",
                place=source.path,
                hint=f"leave `{key}` out",
            )


def _file_reader(path: Path) -> Callable[[Path], Iterator[RawRow]]:
    suffix = file_suffix(path)
    if suffix not in FILE_READERS:
        known = ", ".join(FILE_READERS)
        raise DataError(
            f"unknown kind of data file {suffix!r}" if suffix else "unknown kind of data file: its name has no suffix",
            place=str(path),
            hint=f"rename or convert it to one of: {known}",
        )
    if path.suffix.lower() == ".gz" and suffix not in TEXT_SUFFIXES:
        raise DataError(f"a gzipped {suffix} file is not read", place=str(path), hint=f"unpack it: `gunzip {path}`")
    return FILE_READERS[suffix]
