"""Where a source of data is: on this machine or on the Hub. No file is opened, and no heavy library imported."""

from __future__ import annotations

import difflib
from pathlib import Path

from qlora_cli.data.read.folders import has_pattern
from qlora_cli.errors import DataError
from qlora_cli.hub import HUB_FILES, is_hub_id
from qlora_cli.recipe.data_schema import DataSection

TEXT_SUFFIXES = (".json", ".jsonl", ".csv")
SUFFIXES = (*TEXT_SUFFIXES, ".parquet", ".arrow")
"""Of the files that are read. The text kinds may also end in .gz."""


def refuse_missing(data: DataSection) -> None:
    """Refuse data whose source can only be a file or folder of this machine and is not there.

    Raises:
        DataError: naming it, with files of a like name.
    """
    for source in (*data.train, *(data.eval or ())):
        path = Path(source.path).expanduser()
        if not (path.exists() or has_pattern(source.path) or is_on_hub(source.path)):
            raise missing_file(path)


def is_on_hub(name: str) -> bool:
    """Whether a source is none of this machine: it has the form of a dataset id, and no file or folder has its name."""
    is_id = is_hub_id(name) and file_suffix(Path(name)) not in SUFFIXES
    return name.startswith(HUB_FILES) or (is_id and not Path(name).expanduser().exists())


def file_suffix(path: Path) -> str:
    """Lower-case suffix, the one before a final .gz.

    >>> file_suffix(Path("a/train.JSONL.gz"))
    '.jsonl'
    """
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def missing_file(path: Path) -> DataError:
    """The error of a file or folder that is not there, with what has a like name beside it."""
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
