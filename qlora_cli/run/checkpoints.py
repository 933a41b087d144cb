"""Checkpoints that are complete or absent: staged, hashed, flushed, renamed.

A checkpoint is a folder `checkpoints/step-000050`. While it is written it has another name; its manifest,
`checkpoint.json`, lists the SHA-256 of every other file, says what run it belongs to, and is written last; one rename
makes it visible.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_cli import console
from qlora_cli.errors import IdentityError
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.disk_errors import storage_faults
from qlora_cli.run.files import read_json_object, sha256_file, take_secrets_out, write_json
from qlora_cli.run.folders import KEPT, delete_folder, replaced_folder, sweep
from qlora_cli.run.inventory import SEAL_NAME, checkpoint_files, foreign_files
from qlora_cli.run.manifest import library_versions

FOLDER_NAME = re.compile(r"step-([0-9]{6,12})")


@dataclass(frozen=True)
class Checkpoint:
    """One visible checkpoint."""

    path: Path
    step: int

    def problem(self, expected: Mapping[str, Any] | None = None) -> str:
        """Why it cannot be trusted, in a few words; empty when every byte is as it was written.

        Args:
            expected: facts that its manifest must hold; another value means that it belongs to another run.
        """
        try:
            seal = read_json_object(self.path / SEAL_NAME, hint="")
        except IdentityError:
            return f"{SEAL_NAME} is missing or unreadable"
        hashes = seal.get("sha256")
        if (self.path / SEAL_NAME).is_symlink():
            return f"{SEAL_NAME} is a link"
        if not isinstance(hashes, dict) or seal.get("step") != self.step:
            return f"{SEAL_NAME} does not belong to step {self.step}"
        if seal.get("seal_sha256") != _seal_sha256(seal):
            return f"{SEAL_NAME} has changed since it was written"
        strange = [key for key, value in (expected or {}).items() if seal.get(key) != value]
        if strange:
            return f"it belongs to another run: not the same {', '.join(strange)}"
        try:
            return self._changed_files(hashes, seal.get("beside"))
        except OSError as fault:
            return f"it cannot be read: {fault}"

    def _changed_files(self, hashes: dict[str, str], beside: object) -> str:
        others = set(beside) if isinstance(beside, list) else set()
        names = foreign_files(self.path, others | {SEAL_NAME})
        present = {name: self.path / name for name in names if not KEPT.fullmatch(name)}
        if present.keys() != hashes.keys():
            return f"files differ from its list: {', '.join(sorted(present.keys() ^ hashes.keys()))}"
        for name, path in present.items():
            if path.is_symlink() or not path.is_file():
                return f"{name} is not a plain file"
            if sha256_file(path) != hashes[name]:
                return f"{name} has changed since it was written"
        return ""


def checkpoint_path(folder: Path, step: int) -> Path:
    """Folder of the checkpoint of a step.

    >>> checkpoint_path(Path("checkpoints"), 50).name
    'step-000050'
    """
    return folder / f"step-{step:06d}"


@contextmanager
def staged_checkpoint(folder: Path, step: int, facts: dict[str, Any]) -> Iterator[Path]:
    """A folder to write a checkpoint into; it becomes `folder/step-…` when the block ends without an error.

    Checkpoints of later steps are then deleted: they were passed over as damaged when the run was resumed before
    them, and rotation would keep them in place of this one.

    Args:
        folder: the run's `checkpoints` folder.
        step: optimizer steps done.
        facts: what else the manifest should hold, such as the data's fingerprint.

    Raises:
        ResourceError: if the disk refuses; what was visible before is visible still.
    """
    out = checkpoint_path(folder, step)
    with storage_faults(RunDirectory(folder.parent)), replaced_folder(out, checkpoint_files) as stage:
        yield stage
        take_secrets_out(stage)  # before it is hashed
        hashes = {name: sha256_file(stage / name) for name in foreign_files(stage, set())}
        seal = {"step": step, **facts, "versions": library_versions(), "sha256": hashes}
        if out.is_dir() and (beside := foreign_files(out, checkpoint_files(out) | hashes.keys())):
            seal["beside"] = beside  # it stays there, and the checkpoint is intact anyway
        write_json(stage / SEAL_NAME, {**seal, "seal_sha256": _seal_sha256(seal)})
    with _no_reason_to_stop():
        for later in list_checkpoints(folder):
            if later.step > step:
                delete_folder(later.path, checkpoint_files(later.path))


def _seal_sha256(seal: Mapping[str, Any]) -> str:
    """SHA-256 of a checkpoint manifest's values, whatever its layout."""
    said = {key: value for key, value in seal.items() if key != "seal_sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """Visible checkpoints, oldest first; a folder in which nothing is ours is none."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        name = FOLDER_NAME.fullmatch(path.name)
        if name and path.is_dir() and not path.is_symlink() and (checkpoint_files(path) or not any(path.iterdir())):
            found.append(Checkpoint(path, int(name[1])))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def newest_whole(
    folder: Path, expected: Mapping[str, Any] | None = None
) -> tuple[Checkpoint | None, list[tuple[Checkpoint, str]]]:
    """The newest checkpoint that verifies, and the newer ones that were passed over with the reason.

    Args:
        folder: the run's `checkpoints` folder.
        expected: facts that the manifest must hold, such as the data's fingerprint.
    """
    skipped: list[tuple[Checkpoint, str]] = []
    for checkpoint in reversed(list_checkpoints(folder)):
        problem = checkpoint.problem(expected)
        if not problem:
            return checkpoint, skipped
        skipped.append((checkpoint, problem))
    return None, skipped


def rotate_checkpoints(folder: Path, *, keep: int, best_step: int | None = None) -> None:
    """Delete the files of all but the newest `keep` checkpoints and the best one, and what killed processes left.

    What others put there stays. What cannot be deleted gives a warning and stays: no run should end because it holds a
    checkpoint too many.

    Args:
        folder: the run's `checkpoints` folder.
        keep: how many of the newest stay.
        best_step: step of one that stays beside them, however old it is.
    """
    with _no_reason_to_stop():
        for checkpoint in list_checkpoints(folder)[:-keep]:
            if checkpoint.step == best_step:
                continue
            with _no_reason_to_stop():
                delete_folder(checkpoint.path, checkpoint_files(checkpoint.path))
        sweep(folder, FOLDER_NAME.pattern, checkpoint_files)


@contextmanager
def _no_reason_to_stop() -> Iterator[None]:
    """Warn that something could not be deleted, and continue."""
    try:
        yield
    except OSError as fault:
        console.warn(f"an old checkpoint cannot be deleted: {fault}")
