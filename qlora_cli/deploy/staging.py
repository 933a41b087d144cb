"""An output folder that is whole or not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qlora_cli.errors import ArgumentError
from qlora_cli.run.files import replaced_folder


@contextmanager
def staged_folder(out: Path, *, force: bool) -> Iterator[Path]:
    """A folder to write a model into; it becomes `out` in one rename when the block ends without an error.

    Whatever ends the block early, the staging folder is removed and `out` stays as it was.

    Args:
        out: the folder to make.
        force: whether a model folder that is there may be replaced.

    Raises:
        ArgumentError: if `out` is in the way.
    """
    out = out.absolute()  # "." has no name to stage beside
    refuse_occupied(out, force=force)
    with replaced_folder(out) as stage:
        yield stage


def refuse_occupied(out: Path, *, force: bool) -> None:
    """Raise unless `out` is free, empty, or a model folder that `force` gives up.

    `force` never deletes a folder without config.json: `--out ~ --force` must not cost a home directory.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ArgumentError("is a file", place=str(out), hint="name a folder with --out")
    if not any(out.iterdir()):
        return
    if not force:
        raise ArgumentError(
            "the output folder is not empty", place=str(out), hint="add --force, or choose another --out"
        )
    if not (out / "config.json").is_file():
        raise ArgumentError(
            "--force replaces model folders only, and this one has no config.json",
            place=str(out),
            hint="choose another --out",
        )
