"""manifest.json: identity of a run, so that a later command can check that base, tokenizer and data are the same."""

from __future__ import annotations

import datetime
import platform
from functools import cache
from importlib import metadata
from typing import Any

from qlora_cli.errors import IdentityError
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.files import read_json_object, write_json
from qlora_cli.run.inventory import MARKER

DISTRIBUTION = "qlora-cli"
"""This project's name on the package index, where `qlora` belongs to another."""

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "trl", "datasets", "accelerate", "tokenizers")


@cache
def library_versions() -> dict[str, str]:
    """Version of Python, of this project and of each library that shapes a run."""
    versions = {"python": platform.python_version(), "qlora": metadata.version(DISTRIBUTION)}
    return versions | {name: metadata.version(name) for name in LIBRARIES}


def read_manifest(run: RunDirectory) -> dict[str, Any]:
    """The manifest of a run.

    Raises:
        IdentityError: if it is missing or no JSON object.
    """
    return read_json_object(run.manifest_path, hint="this run directory is damaged; train again")


def recorded_date(run: RunDirectory) -> datetime.date | None:
    """The day that the run's rows hold as today; None where its chat template prints none, or nothing is recorded."""
    try:
        values = read_manifest(run).get("data")
    except IdentityError:
        return None
    written = values.get("date") if isinstance(values, dict) else None
    return datetime.date.fromisoformat(written) if isinstance(written, str) else None


def recorded_fingerprint(run: RunDirectory, section: str) -> str:
    """Fingerprint of what the run was trained on: its `base`, `tokenizer`, `template` or `data`.

    Raises:
        IdentityError: if the manifest does not hold it.
    """
    values = read_manifest(run).get(section)
    fingerprint = values.get("fingerprint") if isinstance(values, dict) else None
    if not isinstance(fingerprint, str):
        raise IdentityError(
            f"holds no fingerprint of the {section}",
            place=str(run.manifest_path),
            hint="this run directory is damaged; train again",
        )
    return fingerprint


def write_manifest(run: RunDirectory, manifest: dict[str, Any]) -> None:
    """Replace the run's manifest; it says that the directory is this project's."""
    write_json(run.manifest_path, {**MARKER, **manifest})
