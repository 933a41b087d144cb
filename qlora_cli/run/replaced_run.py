"""The run that a new one replaces: set aside until the new one is started, brought back if it never is.

Only files that a run consists of are moved or deleted, by a list that is written into `.earlier` first. The run's
recipe is the last to leave and the first to come back, so whoever finds things as a killed process left them knows what
that process was doing:

| recipe in the run directory | recipe in `.earlier` | under way was |
|---|---|---|
| yes | no | moving the earlier run aside, or back |
| no | yes | preparing the new run |
| yes | yes | deleting the earlier run: the new one is started |
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from qlora_cli.errors import ArgumentError
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.files import fsync, uninterrupted
from qlora_cli.run.folders import sweep
from qlora_cli.run.inventory import (
    INVENTORY_NAME,
    delete_files,
    has_inventory,
    is_plain_file,
    prune,
    read_list,
    write_list,
)
from qlora_cli.run.own_files import run_files

RECIPE = "recipe.yaml"


def set_aside(run: RunDirectory) -> None:
    """Make room for a new run; nothing is deleted before that one is started.

    Raises:
        ArgumentError: if something else is where the earlier run would go.
    """
    if os.path.lexists(run.earlier_path) and (not run.earlier_path.is_dir() or any(run.earlier_path.iterdir())):
        raise ArgumentError(
            f"'{run.earlier_path}' was not written by qlora, and the earlier run would go there",
            hint="move it away, or choose another --run-dir",
        )
    names = run_files(run.path)
    uninterrupted(run.earlier_path.mkdir, exist_ok=True)
    write_list(run.earlier_path, names)
    fsync(run.path)
    _move(names, run.path, run.earlier_path)


def restore_or_delete(run: RunDirectory) -> bool:
    """Delete the earlier run if the new one is started; bring it back in place of what there is of the new one if not.

    Returns:
        Whether an earlier run was brought back.
    """
    if not has_inventory(run.earlier_path):
        sweep(run.earlier_path, re.escape(INVENTORY_NAME))  # killed before anything was moved
        prune(run.earlier_path, ())
        return False
    there = [name for name in read_list(run.earlier_path) if is_plain_file(run.earlier_path, name)]
    if RECIPE in there and run.is_started:
        delete_files(run.earlier_path, sorted(there, key=lambda name: name == RECIPE))
        _forget(run)
        return False
    if RECIPE in there:
        delete_files(run.path, run_files(run.path))
    _move(sorted(there, key=lambda name: name != RECIPE), run.earlier_path, run.path)
    _forget(run)
    return bool(there)


def _forget(run: RunDirectory) -> None:
    """Delete the list, once nothing of it is left."""
    delete_files(run.earlier_path, [INVENTORY_NAME])
    fsync(run.path)


def _move(names: list[str], origin: Path, destination: Path) -> None:
    """Move files in this order; where somebody else has put a file of that name, both stay where they are."""
    for name in names:
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(destination / name):
            uninterrupted(os.rename, origin / name, destination / name)
            fsync((destination / name).parent)
    prune(origin, names)
