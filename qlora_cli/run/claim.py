"""Claim on a run directory: one process writes at a time, in a folder that holds a run and nothing else."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qlora_cli import console
from qlora_cli.errors import ArgumentError, RunInUseError
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.disk_errors import storage_faults
from qlora_cli.run.files import read_json_object, uninterrupted, write_json
from qlora_cli.run.folders import is_leftover, named, sweep
from qlora_cli.run.inventory import MARKER, foreign_entries, has_inventory, is_marked
from qlora_cli.run.own_files import FILES, LINK_PLACES, PAGE, run_files
from qlora_cli.run.places import refuse_place as refuse_shared_place
from qlora_cli.run.replaced_run import restore_or_delete

OWN_FOLDER = "--run-dir runs/new"

NUM_LOOKS, LOOK_SECONDS = 5, 0.02

SWEPT = "|".join(["adapter", "residual", "integers", *(re.escape(Path(name).name) for name in (*FILES, PAGE))])
"""Names that the holder of the directory writes; merges and evaluations are made by others."""

LOCK_BYTES = 32
"""Longest content of a lock: a process id."""


@contextmanager
def claimed(run: RunDirectory) -> Iterator[RunDirectory]:
    """Hold the directory for this process; a dead process holds nothing, and what it left half done is deleted.

    A run that was set aside comes back when the directory is released, unless the new one is started by then.

    Raises:
        RunInUseError: if another process holds it, with that process's id.
        ArgumentError: if it cannot be a run directory, holds something else, or links lead out of it.
        IdentityError: if its manifest cannot be read.
        ResourceError: if the disk refuses.
    """
    with storage_faults(run):
        _refuse_foreign(run)
        _make(run)
        refuse_links(run)
        lock = os.open(run.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with storage_faults(run):
            _lock(run, lock)
            _refuse_foreign(run)  # another process may have begun something here meanwhile
            _settle(run)
            refuse_links(run)  # in what was brought back
            _delete_leftovers(run)
            mark(run)
        try:
            yield run
        finally:
            with storage_faults(run):
                _settle(run)
    finally:
        os.close(lock)


def is_ours(run: RunDirectory) -> bool:
    """Whether a command of this project made the directory: its manifest says so, or the list of an earlier run."""
    return is_marked(run.manifest_path) or (not run.earlier_path.is_symlink() and has_inventory(run.earlier_path))


def mark(run: RunDirectory) -> None:
    """Write a manifest that says whose the directory is, where there is none yet."""
    if not run.manifest_path.exists():
        write_json(run.manifest_path, {**MARKER, "status": "preparing"})


def refuse_held(run: RunDirectory) -> None:
    """Refuse to start a run where one was begun.

    Raises:
        ArgumentError: with the ways on.
    """
    if run.is_started:
        state = "a finished run" if run.is_finished else "an unfinished run"
        raise ArgumentError(
            f"run directory '{run.path}' already holds {state}",
            hint="continue with --resume, start over with --overwrite, or choose another --run-dir",
        )


def refuse_place(run: RunDirectory) -> None:
    """Refuse to start a run in a place that is not a folder of its own.

    Raises:
        ArgumentError: for the current directory, the home directory, what holds them, and a git work tree.
    """
    refuse_shared_place(run.path, hint=f"a run has a folder of its own: leave --run-dir out, or try {OWN_FOLDER}")


def foreign(run: RunDirectory) -> list[str]:
    """Entries of the directory that are not part of the run, as `foreign_entries` names them."""
    own = {*run_files(run.path), run.lock_path.name}
    names = foreign_entries(run.path, own)
    return [name for name in names if name not in (f"{run.earlier_path.name}/", "data/", "checkpoints/")]


def _refuse_foreign(run: RunDirectory) -> None:
    if is_ours(run):
        return
    refuse_place(run)
    if not run.path.is_dir():
        return
    refuse_links(run)
    others = [entry.name for entry in run.path.iterdir() if not _is_beginning(run, entry)]
    if not others:
        return
    if run.manifest_path.is_file() and run.is_started:
        read_json_object(run.manifest_path, hint="this run directory is damaged; choose another --run-dir")
    raise ArgumentError(
        f"'{run.path}' is not a run directory, and not empty: it holds {named(sorted(others))}",
        hint=f"a run has a folder of its own: leave --run-dir out, or try {OWN_FOLDER}",
    )


def _is_beginning(run: RunDirectory, entry: Path) -> bool:
    """Whether a process that was killed while it claimed the directory left this."""
    if entry == run.lock_path:
        return entry.is_file() and not entry.is_symlink() and entry.stat().st_size <= LOCK_BYTES
    return entry.name.startswith(f".{run.manifest_path.name}.") and entry.is_file() and is_leftover(entry)


def _make(run: RunDirectory) -> None:
    try:
        uninterrupted(run.path.mkdir, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as fault:
        raise ArgumentError(
            f"'{run.path}' cannot be a run directory: {fault.strerror}", hint="choose another --run-dir"
        ) from fault


def refuse_links(run: RunDirectory) -> None:
    """Make sure that what is written here stays here; the directory itself may be a link.

    Raises:
        ArgumentError: if a place that is written to is a symbolic link.
    """
    checkpoints = run.checkpoints_path
    steps = checkpoints.iterdir() if checkpoints.is_dir() and not checkpoints.is_symlink() else ()
    for entry in (*(run.path / name for name in LINK_PLACES), *steps):
        if entry.is_symlink():
            raise ArgumentError(
                f"'{entry}' is a link to '{os.readlink(entry)}', and a run is written into its own folder only",
                hint=f"move it away; to keep runs on another disk make '{run.path}' itself the link",
            )


def _lock(run: RunDirectory, lock: int) -> None:
    try:
        _lock_patiently(lock)
    except BlockingIOError:
        holder = os.read(lock, LOCK_BYTES).decode("ascii", "replace").strip()
        holder = holder if holder.isdecimal() else "unknown"
        raise RunInUseError(
            f"process {holder} is writing to run directory '{run.path}'",
            hint=f"wait for it, stop it with `kill {holder}`, or choose another --run-dir",
        ) from None
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())


def _delete_leftovers(run: RunDirectory) -> None:
    """Delete what a killed process was writing; checkpoints are swept when they are rotated."""
    for folder in (run.path, run.data_path):
        sweep(folder, SWEPT)


def _settle(run: RunDirectory) -> None:
    if restore_or_delete(run):
        console.note(f"the earlier run is in {run.path} as before")


def _lock_patiently(lock: int) -> None:
    """Take the lock; `qlora runs` may hold it for a moment to see whether anybody does.

    Raises:
        BlockingIOError: if another process keeps it.
    """
    for look in range(NUM_LOOKS):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if look == NUM_LOOKS - 1:
                raise
            time.sleep(LOOK_SECONDS)
        else:
            return
