"""An output folder that is complete or absent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qlora_cli.errors import ArgumentError
from qlora_cli.run.folders import refuse_foreign, replaced_folder
from qlora_cli.run.places import refuse_place

OTHER_OUT = "choose another --out"


@contextmanager
def staged_folder(out: Path, *, force: bool, otherwise: str = OTHER_OUT) -> Iterator[Path]:
    """A folder to write a model into; it becomes `out` in one rename when the block ends without an error.

    Whatever ends the block early, the staging folder is removed and `out` stays as it was.

    Args:
        out: the folder to make; a link to a folder is followed.
        force: whether a model folder that qlora wrote may be replaced.
        otherwise: what to do instead of replacing it.

    Raises:
        ArgumentError: if `out` is in the way.
    """
    out = out.resolve()  # "." has no name to stage beside
    refuse_occupied(out, force=force, otherwise=otherwise)
    with replaced_folder(out) as stage:
        yield stage


def refuse_occupied(out: Path, *, force: bool, otherwise: str = OTHER_OUT) -> None:
    """Raise unless `out` is free, empty, or a model folder that qlora wrote and `force` gives up.

    `force` gives up only what `merge`, `export` or `tiny` wrote: a model from elsewhere in the same place is not
    theirs.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ArgumentError("is a file", place=str(out), hint=otherwise)
    refuse_place(out, hint=otherwise)
    if not any(out.iterdir()):
        return
    refuse_foreign(out, hint=otherwise)
    if not force:
        raise ArgumentError("the output folder is not empty", place=str(out), hint=f"add --force, or {otherwise}")
