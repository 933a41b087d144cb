"""The run directory: the names of its parts, who may write to it, and which runs there are."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from qlora_cli import console
from qlora_cli.errors import ArgumentError, RunInUseError
from qlora_cli.run.earlier import settle
from qlora_cli.run.files import read_json_object, uninterrupted, write_json
from qlora_cli.run.folders import is_leftover, named, sweep
from qlora_cli.run.inventory import MARKER, foreign_entries, has_inventory, is_marked
from qlora_cli.run.own_files import FILES, LINK_PLACES, run_files
from qlora_cli.run.places import refuse_place
from qlora_cli.run.storage import storage_faults

RUNS_FOLDER = Path("runs")
OWN_FOLDER = "--run-dir runs/new"

NUM_LOOKS, LOOK_SECONDS = 5, 0.02

SWEPT = "|".join(["adapter", "residual", *(re.escape(Path(name).name) for name in FILES)])
"""What the holder of the directory writes; merges and evaluations are made by others."""

LOCK_BYTES = 32
"""Longest content of a lock: a process id."""


@dataclass(frozen=True)
class RunDirectory:
    """One run's folder. After training it is the only interface between commands."""

    path: Path
    launcher: str = "qlora"
    """What starts the program that writes here, in as many processes as it needs."""

    def __fspath__(self) -> str:
        """The folder's path, so that a run can be named wherever its folder can."""
        return str(self.path)

    @property
    def recipe_path(self) -> Path:
        """The recipe as resolved, every default written out."""
        return self.path / "recipe.yaml"

    @property
    def manifest_path(self) -> Path:
        """Fingerprints, versions, hardware, seeds, status."""
        return self.path / "manifest.json"

    @property
    def metrics_path(self) -> Path:
        """One JSON object a line for each logged step and each evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def log_path(self) -> Path:
        """What the libraries said."""
        return self.path / "log.txt"

    @property
    def data_path(self) -> Path:
        """The data report, and the rows that were taken out."""
        return self.path / "data"

    @property
    def checkpoints_path(self) -> Path:
        """Whole checkpoints, `step-000050` and so on."""
        return self.path / "checkpoints"

    @property
    def adapter_path(self) -> Path:
        """The finished PEFT adapter."""
        return self.path / "adapter"

    @property
    def residual_path(self) -> Path:
        """The base that is left after PiSSA took out its principal part."""
        return self.path / "residual"

    @property
    def eval_path(self) -> Path:
        """Results of `qlora eval`."""
        return self.path / "eval"

    @property
    def merged_path(self) -> Path:
        """The merged model."""
        return self.path / "merged"

    @property
    def earlier_path(self) -> Path:
        """The run that a new one is about to replace."""
        return self.path / ".earlier"

    @property
    def lock_path(self) -> Path:
        """Locked by the process that writes here, whose id it holds."""
        return self.path / ".lock"

    @property
    def resume_command(self) -> str:
        """What to type to go on with the run."""
        return f"{self.launcher} train {quote(str(self.recipe_path))} --run-dir {quote(str(self.path))} --resume"

    @property
    def is_started(self) -> bool:
        """Whether a run was ever begun here."""
        return self.recipe_path.is_file()

    @property
    def is_finished(self) -> bool:
        """Whether the run's adapter is there."""
        return (self.adapter_path / "adapter_config.json").is_file()

    @contextmanager
    def claimed(self) -> Iterator[RunDirectory]:
        """Hold the directory for this process; a dead process holds nothing, and what it left half done is deleted.

        A run that was put aside comes back when the directory is let go, unless the new one is started by then.

        Raises:
            RunInUseError: if another process holds it, with that process's id.
            ArgumentError: if it cannot be a run directory, holds something else, or links lead out of it.
            IdentityError: if its manifest cannot be read.
            ResourceError: if the disk refuses.
        """
        with storage_faults(self):
            self._refuse_foreign()
            self._make()
            self.refuse_links()
            lock = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with storage_faults(self):
                self._lock(lock)
                self._refuse_foreign()  # another process may have begun something here meanwhile
                self._settle()
                self.refuse_links()  # in what was brought back
                self._delete_leftovers()
                self.mark()
            try:
                yield self
            finally:
                with storage_faults(self):
                    self._settle()
        finally:
            os.close(lock)

    @property
    def is_ours(self) -> bool:
        """Whether a command of this project made the directory: its manifest says so, or the list of an earlier run."""
        return is_marked(self.manifest_path) or (
            not self.earlier_path.is_symlink() and has_inventory(self.earlier_path)
        )

    def mark(self) -> None:
        """Write a manifest that says whose the directory is, where there is none yet."""
        if not self.manifest_path.exists():
            write_json(self.manifest_path, {**MARKER, "status": "preparing"})

    def refuse_place(self) -> None:
        """Refuse to start a run in a place that is no folder of its own.

        Raises:
            ArgumentError: for the current directory, the home directory, what holds them, and a git work tree.
        """
        refuse_place(self.path, hint=f"a run has a folder of its own: leave --run-dir out, or try {OWN_FOLDER}")

    def foreign(self) -> list[str]:
        """What lies in the directory and is not part of the run, as `foreign_entries` names it."""
        own = {*run_files(self.path), self.lock_path.name}
        names = foreign_entries(self.path, own)
        return [name for name in names if name not in (f"{self.earlier_path.name}/", "data/", "checkpoints/")]

    def _refuse_foreign(self) -> None:
        if self.is_ours:
            return
        self.refuse_place()
        if not self.path.is_dir():
            return
        self.refuse_links()
        others = [entry.name for entry in self.path.iterdir() if not self._is_beginning(entry)]
        if not others:
            return
        if self.manifest_path.is_file() and self.is_started:
            read_json_object(self.manifest_path, hint="this run directory is damaged; choose another --run-dir")
        raise ArgumentError(
            f"'{self.path}' is no run directory, and not empty: it holds {named(sorted(others))}",
            hint=f"a run has a folder of its own: leave --run-dir out, or try {OWN_FOLDER}",
        )

    def _is_beginning(self, entry: Path) -> bool:
        """Whether a process that was killed while it claimed the directory left this."""
        if entry == self.lock_path:
            return entry.is_file() and not entry.is_symlink() and entry.stat().st_size <= LOCK_BYTES
        return entry.name.startswith(f".{self.manifest_path.name}.") and entry.is_file() and is_leftover(entry)

    def _make(self) -> None:
        try:
            uninterrupted(self.path.mkdir, parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as fault:
            raise ArgumentError(
                f"'{self.path}' cannot be a run directory: {fault.strerror}", hint="choose another --run-dir"
            ) from fault

    def refuse_links(self) -> None:
        """Make sure that what is written here stays here; the directory itself may be a link.

        Raises:
            ArgumentError: if a place that is written to is a symbolic link.
        """
        checkpoints = self.checkpoints_path
        steps = checkpoints.iterdir() if checkpoints.is_dir() and not checkpoints.is_symlink() else ()
        for entry in (*(self.path / name for name in LINK_PLACES), *steps):
            if entry.is_symlink():
                raise ArgumentError(
                    f"'{entry}' is a link to '{os.readlink(entry)}', and a run is written into its own folder only",
                    hint=f"move it away; to keep runs on another disk make '{self.path}' itself the link",
                )

    def _lock(self, lock: int) -> None:
        try:
            _lock_patiently(lock)
        except BlockingIOError:
            holder = os.read(lock, LOCK_BYTES).decode("ascii", "replace").strip()
            holder = holder if holder.isdecimal() else "unknown"
            raise RunInUseError(
                f"process {holder} is writing to run directory '{self.path}'",
                hint=f"wait for it, stop it with `kill {holder}`, or choose another --run-dir",
            ) from None
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())

    def _delete_leftovers(self) -> None:
        """What a killed process was writing; checkpoints are swept when they are rotated."""
        for folder in (self.path, self.data_path):
            sweep(folder, SWEPT)

    def _settle(self) -> None:
        if settle(self):
            console.note(f"the earlier run is in {self.path} as before")


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


def list_runs(folder: Path = RUNS_FOLDER) -> list[RunDirectory]:
    """Every run below `folder`, the one whose metrics or recipe changed last first."""
    runs = [RunDirectory(path) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(filter(lambda run: run.is_started, runs), key=_last_change, reverse=True)


def _last_change(run: RunDirectory) -> float:
    paths = (run.metrics_path, run.recipe_path)
    return max(path.stat().st_mtime for path in paths if path.exists())


def latest_run(folder: Path = RUNS_FOLDER) -> RunDirectory:
    """The run that changed last.

    Raises:
        ArgumentError: if there is none.
    """
    runs = list_runs(folder)
    if not runs:
        raise ArgumentError(
            f"there is no run in '{folder}'",
            hint="train one with `qlora train RECIPE`, or name a run directory",
        )
    return runs[0]
