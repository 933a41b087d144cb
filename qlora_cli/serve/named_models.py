"""`NAME=RUN`, as `qlora serve` takes it, read before any library is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from qlora_cli.errors import ArgumentError
from qlora_cli.run.directory import refuse_absent


class NamedModel(NamedTuple):
    """A model and the name that requests use."""

    name: str
    """Empty where none was given."""

    path: Path | None
    """None is the latest run."""


def named_models(texts: Sequence[str]) -> list[NamedModel]:
    """What `NAME=PATH` and paths alone say; the latest run where there is nothing.

    A path with `=` in it that is there is taken whole.

    Raises:
        ArgumentError: for an empty name, or where there is no folder at a path.
    """
    models = [_named_model(text) for text in texts] or [NamedModel("", None)]
    refuse_absent(*(model.path for model in models))
    return models


def _named_model(text: str) -> NamedModel:
    name, cut, path = text.partition("=")
    if not cut or Path(text).expanduser().exists():
        return NamedModel("", Path(text).expanduser())
    if not name.strip() or not path.strip():
        raise ArgumentError(f"'{text}' is no model with a name", hint="write NAME=FOLDER")
    return NamedModel(name.strip(), Path(path).expanduser())
