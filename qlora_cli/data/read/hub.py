"""Rows of a dataset on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError, DatasetsError
from huggingface_hub.utils import httpx

from qlora_cli.data.example import Place, RawRow
from qlora_cli.data.read.columnar import READ_FAULTS, first_line, rows_of_dataset
from qlora_cli.data.read.error_text import without_nulls
from qlora_cli.errors import DataError
from qlora_cli.hub import HUB_FILES, why_offline
from qlora_cli.recipe.data_schema import SourceSection

DATASET_FAULTS = (DatasetsError,)
"""What `datasets` raises when it cannot load something."""

_LOAD_FAULTS = (DatasetNotFoundError, DatasetGenerationError, httpx.HTTPError, *READ_FAULTS)
"""No connection, offline mode and missing files are OSErrors; an unknown subset or split is a ValueError."""


_OUT_OF_REACH = (DatasetNotFoundError, httpx.HTTPError, OSError)


def read_hub(source: SourceSection) -> Iterator[RawRow]:
    """Rows of one split: downloaded or from the local cache, or under `streaming` over the network as they are read.

    Raises:
        DataError: if it does not load, or the connection breaks while it is read.
    """
    split = source.split or "train"
    repository, pattern = _repository(source)
    name = f"{source.path}[{split}]" if pattern is None else source.path
    reason = why_offline()
    try:
        dataset = datasets.load_dataset(
            repository,
            name=source.subset,
            data_files=None if pattern is None else {split: pattern},
            split=split,
            revision=source.revision,
            streaming=source.streaming,
        )
    except _LOAD_FAULTS as error:
        if reason and isinstance(error, _OUT_OF_REACH):
            raise DataError(
                f"neither a file or folder here nor a dataset in the Hub's cache, and {reason}",
                place=source.path,
                hint=f"check the path (it starts at {Path.cwd()}), or the network and HF_ENDPOINT"
                + f" (`unset {reason.partition(' ')[0]}`)" * reason.endswith(" is set"),
            ) from error
        raise DataError(
            f"not a file or folder here, and as a Hub dataset it does not load: {_said(error)}",
            place=source.path,
            hint=_way_on(error, split),
        ) from error
    return _streamed(dataset, name) if source.streaming else rows_of_dataset(dataset, name)


def _repository(source: SourceSection) -> tuple[str, str | None]:
    """The dataset's id, and the pattern of its files where the path names some.

    Raises:
        DataError: a path of files that names none, or keys that say something else.
    """
    if not source.path.startswith(HUB_FILES):
        return source.path, None
    parts = source.path.removeprefix(HUB_FILES).split("/", 2)
    if len(parts) < 3 or not all(parts):
        raise DataError(
            "no files are named", place=source.path, hint=f"write `{HUB_FILES}owner/name/data/train-*.parquet`"
        )
    for key in ("subset", "split"):
        if getattr(source, key):
            text = f"`{key}: {getattr(source, key)}` beside a path that names the files"
            raise DataError(text, place=source.path, hint=f"leave `{key}` out")
    return f"{parts[0]}/{parts[1]}", parts[2]


def _said(error: BaseException) -> str:
    """The first line of an error, and the one after it: of a missing configuration that lists those that are there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if isinstance(error, ValueError) and lines else first_line(error)


def _way_on(error: BaseException, split: str) -> str:
    said = str(error)
    if isinstance(error, ValueError) and "onfig" in said:
        return "set `subset` to one of them"
    if isinstance(error, ValueError) and "split" in said:
        return f"set `split` to one of them; without the key it is `{split}`"
    keys = "`subset`, `split`, the network and HF_TOKEN"
    return f"check the path (relative to the current directory), the dataset id, {keys}"


def _streamed(dataset: datasets.IterableDataset, name: str) -> Iterator[RawRow]:
    number = 0
    rows: Iterator[dict[str, Any]] = iter(dataset)
    while True:
        number += 1
        place = Place(name, None, number)
        try:
            row = next(rows, None)
        except _LOAD_FAULTS as error:
            hint = "try again, or leave `streaming` out to download the dataset once"
            raise DataError(f"cannot be read from here on: {first_line(error)}", place=str(place), hint=hint) from error
        if row is None:
            return
        yield RawRow(place, {key: without_nulls(value) for key, value in row.items()})
