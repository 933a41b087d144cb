"""Measured overheads and speed of a GPU of this machine, kept in a file and used by plans.

`qlora plan --calibrate` (`plan/calibrate.py`) measures and writes the file. It is named by what the figures depend on:
the GPU's name, the driver and torch; a plan uses it only where all three are still the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from math import inf
from pathlib import Path

import torch

from qlora_cli import console
from qlora_cli.cache_folder import CACHE_ELSEWHERE, cache_folder
from qlora_cli.errors import IdentityError
from qlora_cli.run.disk_errors import naming
from qlora_cli.run.files import read_json_object, write_json

DRIVER_VERSION = Path("/sys/module/nvidia/version")


@dataclass(frozen=True)
class Overheads:
    """Figures of one GPU, measured on this machine."""

    gpu: str
    """Its name as the driver gives it."""

    driver: str
    torch: str
    """Versions that the figures hold for."""

    measured_on: str
    """Date, as 2026-11-25."""

    memory_bytes: int
    """All memory of the GPU, as the driver counts it."""

    context_bytes: int
    """Of it what torch's allocator does not have: the context, loaded kernels, what the driver keeps for itself."""

    cublas_bytes: int
    """Workspaces of cuBLAS, of all threads together; they are in torch's allocator."""

    reached_tflops: float
    """Rate of a short NF4 training step, dequantization not counted."""

    @property
    def source(self) -> str:
        """Source of the figures, as the budget names it."""
        return f"measured here on {self.measured_on}"


def overheads_root() -> Path:
    """`$QLORA_CACHE/calibration`, by default `~/.cache/qlora/calibration`."""
    return cache_folder("calibration")


def driver_version() -> str:
    """Version of the NVIDIA driver that is loaded; "unknown" where the kernel does not tell, as under WSL."""
    return DRIVER_VERSION.read_text("utf-8").strip() if DRIVER_VERSION.is_file() else "unknown"


def save_overheads(overheads: Overheads) -> Path:
    """Write the figures to their file, in place of older ones.

    Returns:
        The file.
    """
    path = overheads_root() / f"{_slug(overheads.gpu, overheads.driver, overheads.torch)}.json"
    with naming(path.parent, CACHE_ELSEWHERE):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(overheads))
    return path


def find_overheads(is_wanted: Callable[[str], bool]) -> Overheads | None:
    """Overheads measured under the driver and torch in use, of a GPU whose name is wanted; None where nothing was.

    A damaged file gives a warning and is not used.

    Args:
        is_wanted: whether a GPU of that name, as the driver gives it, is the one that is planned for.
    """
    in_use = (driver_version(), torch.__version__)
    for path in sorted(overheads_root().glob("*.json")):
        try:
            found = read_overheads(path)
        except IdentityError as error:
            problem = error.problems[0]
            console.warn(f"{problem.place}: {problem.text}; measure again: `qlora plan --calibrate`")
            continue
        if (found.driver, found.torch) == in_use and is_wanted(found.gpu):
            return found
    return None


def read_overheads(path: Path) -> Overheads:
    """The figures of a file.

    Raises:
        IdentityError: if one is missing, of another kind, or not above zero.
    """
    values = read_json_object(path, hint="")
    for field in fields(Overheads):
        value = values.get(field.name)
        if not (isinstance(value, str) if field.type == "str" else _is_figure(value, str(field.type))):
            raise IdentityError(f"is damaged: '{field.name}' is {value!r}", place=str(path))
    return Overheads(**{field.name: values[field.name] for field in fields(Overheads)})


def _is_figure(value: object, kind: str) -> bool:
    """Whether a value from JSON is a finite number above zero, and a whole one where `kind` is "int".

    >>> _is_figure(3, "int"), _is_figure(3.5, "int"), _is_figure(True, "int"), _is_figure(float("inf"), "float")
    (True, False, False, False)
    """
    if isinstance(value, bool) or not isinstance(value, int if kind == "int" else int | float):
        return False
    return 0 < value < inf


def _slug(*parts: str) -> str:
    """
    >>> _slug("NVIDIA GeForce RTX 4090", "550.54.15", "2.13.0+cu128")
    'nvidia-geforce-rtx-4090-550.54.15-2.13.0-cu128'
    """
    return re.sub(r"[^a-z0-9.]+", "-", "-".join(parts).lower())
