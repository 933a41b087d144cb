"""The device that is planned for; without torch, so that a GPU is found by its name without delay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from qlora_cli.constants import AMPERE

if TYPE_CHECKING:
    from qlora_cli.plan.machine.calibration import Overheads


@dataclass(frozen=True)
class Device:
    """Facts of the device that is planned for, which need not be there."""

    kind: Literal["cuda", "cpu"] = "cuda"

    capability: tuple[int, int] = AMPERE
    """CUDA compute capability; it decides the kernels and, under `model.dtype: auto`, the precision."""

    num_multiprocessors: int = 108
    """Streaming multiprocessors."""

    num_gpus: int = 1
    """GPUs that train together, each in a process of its own with the whole model."""

    overheads: Overheads | None = None
    """Overheads measured on this machine's GPU; without them, those that hold for CUDA in general."""
