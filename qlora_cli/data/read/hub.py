"""Rows of a dataset on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub.utils import httpx

from qlora_cli.data.example import Place, RawRow
from qlora_cli.data.read.columnar import READ_FAULTS, first_line, rows_of_dataset
from qlora_cli.data.read.values import without_nulls
from qlora_cli.errors import DataError
from qlora_cli.hub import why_offline
from qlora_cli.recipe.data_schema import SourceSection

_LOAD_FAULTS = (DatasetNotFoundError, DatasetGenerationError, httpx.HTTPError, *READ_FAULTS)
"""No connection, offline mode and missing files are OSErrors; an unknown subset or split is a ValueError."""


_OUT_OF_REACH = (DatasetNotFoundError, httpx.HTTPError, OSError)


def read_hub(source: SourceSection) -> Iterator[RawRow]:
    """Rows of one split: downloaded or from the local cache, or under `streaming` over the network as they are read.

    Raises:
        DataError: if it does not load, or the connection breaks while it is read.
    """
    split = source.split or "train"
    name = f"{source.path}[{split}]"
    reason = why_offline()
    try:
        dataset = datasets.load_dataset(
            source.path, name=source.subset, split=split, revision=source.revision, streaming=source.streaming
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
            f"not a file or folder here, and as a Hub dataset it does not load: {first_line(error)}",
            place=source.path,
            hint="check the path (relative to the current directory), the dataset id, `subset`, `split`, "
            "the network and HF_TOKEN",
        ) from error
    return _streamed(dataset, name) if source.streaming else rows_of_dataset(dataset, name)


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
