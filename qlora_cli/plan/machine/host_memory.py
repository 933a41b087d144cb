"""Free host memory of the machine."""

from __future__ import annotations

from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def available_bytes(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int | None:
    """Bytes that a process may take before the kernel ends one; None where no Linux says.

    The kernel's own estimate (`MemAvailable`), or what a container's limit leaves (cgroup v2), whichever is less.
    """
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    values = {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines) if value}
    found = [values.get("MemAvailable"), _left_in_container(cgroup)]
    return min((each for each in found if each is not None), default=None)


def _left_in_container(cgroup: Path) -> int | None:
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(0, int(limit) - used)
