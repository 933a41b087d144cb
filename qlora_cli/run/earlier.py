"""The run that a new one replaces: put aside until the new one is started, brought back if it never is.

Its recipe is the last entry to leave and the first to come back, so whoever finds things as a killed process left
them knows what that process was doing:

| recipe in the run directory | recipe in `.earlier` | under way was |
|---|---|---|
| yes | no | moving the earlier run aside, or back |
| no | yes | preparing the new run |
| yes | yes | deleting the earlier run: the new one is started |
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_cli.run.files import delete_folder, fsync, remove, uninterrupted

if TYPE_CHECKING:
    from qlora_cli.run.directory import RunDirectory


def put_aside(run: RunDirectory) -> None:
    """Make room for a new run; nothing is deleted before that one is started."""
    uninterrupted(run.earlier_path.mkdir, exist_ok=True)
    _move(sorted(_entries(run), key=lambda entry: entry == run.recipe_path), run.earlier_path)
    fsync(run.path)


def settle(run: RunDirectory) -> bool:
    """Delete the earlier run if the new one is started; bring it back in place of what there is of the new one if not.

    Returns:
        Whether an earlier run was brought back.
    """
    if not run.earlier_path.is_dir():
        return False
    recipe = run.earlier_path / run.recipe_path.name
    if recipe.is_file():
        if run.is_started:
            delete_folder(run.earlier_path)
            return False
        for entry in _entries(run):
            remove(entry)
    _move(sorted(run.earlier_path.iterdir(), key=lambda entry: entry != recipe), run.path)
    uninterrupted(run.earlier_path.rmdir)
    fsync(run.path)
    return True


def _entries(run: RunDirectory) -> list[Path]:
    """What a run consists of."""
    return [entry for entry in run.path.iterdir() if entry not in (run.lock_path, run.earlier_path)]


def _move(entries: Iterable[Path], folder: Path) -> None:
    for entry in entries:
        uninterrupted(os.rename, entry, folder / entry.name)
    fsync(folder)
