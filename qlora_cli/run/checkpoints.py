"""Checkpoints that are whole or not there: staged, hashed, flushed, renamed.

A checkpoint is a folder `checkpoints/step-000050`. While it is written it has another name; its
`checkpoint.json` lists the SHA-256 of every other file and is written last; one rename makes it visible.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_cli.errors import IdentityError
from qlora_cli.run.files import delete_folder, replaced_folder, sha256_file, write_json
from qlora_cli.run.manifest import read_json_object

SEAL_NAME = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """One visible checkpoint."""

    path: Path
    step: int

    def problem(self) -> str:
        """Why it cannot be trusted, in a few words; empty when every byte is as it was written."""
        try:
            seal = read_json_object(self.path / SEAL_NAME, hint="")
        except IdentityError:
            return f"{SEAL_NAME} is missing or unreadable"
        hashes = seal.get("sha256")
        if not isinstance(hashes, dict) or seal.get("step") != self.step:
            return f"{SEAL_NAME} does not belong to step {self.step}"
        present = {str(path.relative_to(self.path)) for path in _files(self.path)}
        if present != set(hashes):
            return f"files differ from its list: {', '.join(sorted(present ^ set(hashes)))}"
        for name, expected in hashes.items():
            if sha256_file(self.path / name) != expected:
                return f"{name} has changed since it was written"
        return ""


@contextmanager
def staged_checkpoint(folder: Path, step: int, facts: dict[str, Any]) -> Iterator[Path]:
    """A folder to write a checkpoint into; it becomes `folder/step-…` when the block ends without an error.

    Args:
        folder: the run's `checkpoints` folder.
        step: optimizer steps done.
        facts: what else the seal should say, such as the recipe's fingerprint.
    """
    with replaced_folder(folder / f"step-{step:06d}") as stage:
        yield stage
        hashes = {str(path.relative_to(stage)): sha256_file(path) for path in sorted(_files(stage))}
        write_json(stage / SEAL_NAME, {"step": step, **facts, "sha256": hashes})


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and path.name != SEAL_NAME)


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """Visible checkpoints, oldest first."""
    found = []
    for path in folder.glob("step-*") if folder.is_dir() else ():
        number = path.name.removeprefix("step-")
        if path.is_dir() and number.isdigit():
            found.append(Checkpoint(path, int(number)))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def newest_whole(folder: Path) -> tuple[Checkpoint | None, list[tuple[Checkpoint, str]]]:
    """The newest checkpoint that verifies, and the newer ones that were passed over with the reason."""
    skipped: list[tuple[Checkpoint, str]] = []
    for checkpoint in reversed(list_checkpoints(folder)):
        problem = checkpoint.problem()
        if not problem:
            return checkpoint, skipped
        skipped.append((checkpoint, problem))
    return None, skipped


def rotate_checkpoints(folder: Path, *, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what a killed process left half done."""
    for checkpoint in list_checkpoints(folder)[:-keep]:
        delete_folder(checkpoint.path)
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)
