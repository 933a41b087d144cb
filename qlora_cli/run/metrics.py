"""metrics.jsonl: one line a step, readable during the run, without doubles after a resume."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from qlora_cli.errors import IdentityError
from qlora_cli.run.disk_errors import naming
from qlora_cli.run.files import write_text
from qlora_cli.secrets import redacted


def append_metrics(path: Path, values: dict[str, Any]) -> None:
    """Add one line. A value that is not finite is written as null, which JSON can hold.

    An evaluation is on the disk when this returns: a resumed run decides by it when to stop and which step is the best.
    """
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.write(redacted(json.dumps(finite, allow_nan=False)) + "\n")
        if "eval_loss" in values:
            file.flush()
            os.fsync(file.fileno())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines; a last line cut short by a crash is left out.

    Raises:
        IdentityError: if another line is damaged.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    values = []
    for number, line in enumerate(lines, start=1):
        try:
            values.append(_parsed(line))
        except ValueError as fault:
            if number != len(lines):
                raise IdentityError(
                    f"this line is damaged: {fault}", place=f"{path}:{number}", hint="delete the line"
                ) from fault
    return values


def read_intact_metrics(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines that can be read, and the number of those that cannot, the last one cut short by a crash included.

    For showing a run; what decides by the lines takes `read_metrics`.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return [], 0
    values, num_damaged = [], 0
    for line in lines:
        try:
            values.append(_parsed(line))
        except ValueError:
            num_damaged += 1
    return values, num_damaged


def _parsed(line: str) -> dict[str, Any]:
    """One line of the file.

    Raises:
        ValueError: if it is no JSON object with a step.
    """
    try:
        values = json.loads(line)
    except RecursionError as fault:
        raise ValueError("it is nested too deeply") from fault
    if not isinstance(values, dict) or not isinstance(values.get("step"), int):
        raise ValueError("it is no JSON object with a step")
    return values


def forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run will do again."""
    if path.exists():
        kept = [values for values in read_metrics(path) if values["step"] <= step]
        write_text(path, "".join(json.dumps(values) + "\n" for values in kept))
