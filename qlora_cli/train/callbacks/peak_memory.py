"""The most memory that a session takes, from the moment on at which nothing of it is loaded."""

from __future__ import annotations

import resource
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Makes the kernel forget the peak of a process (proc_pid_clear_refs(5))."""


def peak_memory_bytes() -> int:
    """Most memory held so far: allocated on the GPU, or resident in this process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class PeakMemory:
    """Begins to measure when it is made.

    On a GPU it reads torch's own counters. On a CPU torch has none; there it is by how much the process grows, which
    holds more than tensors and less than what is swapped.
    """

    def __init__(self) -> None:
        self._resident = 0
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            return
        try:
            CLEAR_REFS.write_text(RESET_PEAK)
            self._resident = _status_bytes("VmRSS")
        except OSError:
            pass  # not Linux, or not allowed: nothing is measured

    def measured(self) -> dict[str, int]:
        """Peak bytes by what was counted; empty where nothing could be."""
        if torch.cuda.is_available():
            return {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
        return {"resident": _status_bytes("VmHWM") - self._resident} if self._resident else {}


def _status_bytes(name: str) -> int:
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
