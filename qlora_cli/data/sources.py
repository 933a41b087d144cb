"""From a recipe's data source to rows, each with its place.

JSON, JSON Lines and CSV files are read by `jsonl` and `csv_rows`, with `file:line`; Parquet and Arrow files, folders
saved by `datasets` and Hub datasets are read here. The one home of the `datasets` library.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from qlora_cli.data.csv_rows import read_csv
from qlora_cli.data.example import Place
from qlora_cli.data.jsonl import read_json, read_jsonl
from qlora_cli.errors import DataError
from qlora_cli.recipe.data_schema import SourceSection

Row = dict[str, Any]

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)


def read_rows(source: SourceSection) -> list[tuple[Place, Row]]:
    """All rows of the source, in its order. A relative path starts at the current directory.

    Raises:
        DataError: a missing or malformed source; every bad row is named by its place.
    """
    path = Path(source.path).expanduser()
    if path.is_dir():
        _refuse_keys(source, "subset", "revision")
        rows = read_folder(path, source.split)
    elif path.exists():
        _refuse_keys(source, "subset", "split", "revision")
        rows = _file_reader(path)(path)
    elif _HUB_ID.fullmatch(source.path) and _file_suffix(path) not in FILE_READERS:
        rows = read_hub(source)
    else:
        raise _missing_file(path)
    if not rows:
        raise DataError("the source holds no rows", place=source.path)
    return rows


def _refuse_keys(source: SourceSection, *keys: str) -> None:
    """Keys that only other kinds of source take."""
    for key in keys:
        if getattr(source, key) is not None:
            raise DataError(
                f"`{key}: {getattr(source, key)}` is for Hub datasets, and this is a local path",
                place=source.path,
                hint=f"leave `{key}` out",
            )


def _file_suffix(path: Path) -> str:
    """Lower-case suffix, the one before a final .gz.

    >>> _file_suffix(Path("a/train.JSONL.gz"))
    '.jsonl'
    """
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _file_reader(path: Path) -> Callable[[Path], list[tuple[Place, Row]]]:
    suffix = _file_suffix(path)
    if suffix not in FILE_READERS:
        known = ", ".join(FILE_READERS)
        raise DataError(
            f"unknown kind of data file {suffix or 'without suffix'!r}",
            place=str(path),
            hint=f"rename or convert it to one of: {known}",
        )
    if path.suffix.lower() == ".gz" and suffix not in TEXT_SUFFIXES:
        raise DataError(f"a gzipped {suffix} file is not read", place=str(path), hint=f"unpack it: `gunzip {path}`")
    return FILE_READERS[suffix]


def _missing_file(path: Path) -> DataError:
    folder = path.parent
    if not folder.is_dir():
        return DataError(
            "no such file or folder",
            place=str(path),
            hint=f"folder '{folder}' does not exist (paths start at the current directory, {Path.cwd()})",
        )
    close = difflib.get_close_matches(path.name, [entry.name for entry in folder.iterdir()], n=3)
    if close:
        hint = "did you mean " + " or ".join(f"'{folder / name}'" for name in close) + "?"
    else:
        hint = f"nothing of a like name in {folder.resolve()} (paths start at the current directory)"
    return DataError("no such file or folder", place=str(path), hint=hint)


def read_parquet(path: Path) -> list[tuple[Place, Row]]:
    """Rows of a Parquet file. Read straight from it: the builder of `datasets` first copies it into a cache."""
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"not a Parquet file: {_first_line(error)}", place=str(path)) from error
    return _placed(table.to_pylist(), str(path))


def read_arrow(path: Path) -> list[tuple[Place, Row]]:
    """Rows of an Arrow file as `datasets` writes it."""
    try:
        dataset = datasets.Dataset.from_file(str(path))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"not an Arrow file of `datasets`: {_first_line(error)}", place=str(path)) from error
    return _placed(dataset.to_list(), str(path))


def read_folder(path: Path, split: str | None) -> list[tuple[Place, Row]]:
    """Rows of a Dataset, or of one split of a DatasetDict, that `save_to_disk` wrote."""
    if not ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file()):
        files = sorted(entry.name for entry in path.iterdir() if entry.is_file())
        raise DataError(
            "the folder is no dataset saved by `save_to_disk`",
            place=str(path),
            hint=f"name the files in it, e.g. {path / files[0]}" if files else "the folder holds no file",
        )
    try:
        saved = datasets.load_from_disk(str(path))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"the saved dataset cannot be read: {_first_line(error)}", place=str(path)) from error
    if isinstance(saved, datasets.Dataset):
        if split is not None:
            raise DataError(
                f"the saved dataset has no splits, `split: {split}` was asked for",
                place=str(path),
                hint="leave `split` out",
            )
        return _placed(saved.to_list(), str(path))
    name = split or "train"
    if name not in saved:
        raise DataError(
            f"no split '{name}'", place=str(path), hint=f"set `split` to one of: {', '.join(map(str, saved))}"
        )
    return _placed(saved[name].to_list(), f"{path}[{name}]")


def read_hub(source: SourceSection) -> list[tuple[Place, Row]]:
    """Rows of one split of a Hub dataset, downloaded or from the local cache."""
    split = source.split or "train"
    try:
        dataset = datasets.load_dataset(source.path, name=source.subset, split=split, revision=source.revision)
    except (DatasetNotFoundError, DatasetGenerationError, OSError, ValueError) as error:
        # OSError covers no connection, offline mode and missing files; ValueError an unknown subset or split.
        raise DataError(
            f"not a file or folder here, and as a Hub dataset it does not load: {_first_line(error)}",
            place=source.path,
            hint="check the path (relative to the current directory), the dataset id, `subset`, `split`, "
            "the network and HF_TOKEN",
        ) from error
    return _placed(dataset.to_list(), f"{source.path}[{split}]")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _placed(rows: list[Row], file: str) -> list[tuple[Place, Row]]:
    """Rows with their places. One schema covers all rows of such a file, so a message without tool calls, or an
    argument that only another row's call has, is stored as null; inside nested values those nulls are left out."""
    return [
        (Place(file, None, number), {key: _without_nulls(value) for key, value in row.items()})
        for number, row in enumerate(rows, start=1)
    ]


def _without_nulls(value: Any) -> Any:
    """
    >>> _without_nulls([{"name": "f", "arguments": {"city": "Bonn", "zip": None}}])
    [{'name': 'f', 'arguments': {'city': 'Bonn'}}]
    """
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


TEXT_SUFFIXES = (".json", ".jsonl", ".csv")
FILE_READERS: dict[str, Callable[[Path], list[tuple[Place, Row]]]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
"""Suffix -> reader. The text kinds may also end in .gz."""
