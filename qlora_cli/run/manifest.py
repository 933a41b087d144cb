"""manifest.json: what a run stands on, so that a later command can tell whether it still does."""

from __future__ import annotations

import datetime
import json
import platform
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from qlora_cli.errors import IdentityError
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.files import write_json

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "trl", "datasets", "accelerate", "tokenizers")
MAX_JSON_BYTES = 16 * 1024 * 1024
"""What this project writes of that kind takes kilobytes."""


@cache
def library_versions() -> dict[str, str]:
    """Version of Python, of this project and of each library that shapes a run."""
    versions = {"python": platform.python_version(), "qlora": metadata.version("qlora")}
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


def read_json_object(path: Path, *, hint: str) -> dict[str, Any]:
    """The JSON object in a file that this project wrote.

    Raises:
        IdentityError: if the file is missing or holds something else.
    """
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise IdentityError("is not a file", place=str(path), hint=hint)
        if path.stat().st_size > MAX_JSON_BYTES:
            raise IdentityError(f"is larger than {MAX_JSON_BYTES:,} bytes", place=str(path), hint=hint)
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise IdentityError(f"cannot be read: {fault}", place=str(path), hint=hint) from fault
    except RecursionError as fault:
        raise IdentityError("cannot be read: it is nested too deeply", place=str(path), hint=hint) from fault
    if not isinstance(value, dict):
        raise IdentityError(f"must hold a JSON object, not {type(value).__name__}", place=str(path), hint=hint)
    return value


def write_manifest(run: RunDirectory, manifest: dict[str, Any]) -> None:
    """Replace the run's manifest."""
    write_json(run.manifest_path, manifest)
