"""What the kernel and a container's limit leave of a machine's memory."""

from __future__ import annotations

import pytest

from qlora_cli.plan.machine.host_memory import available_bytes

MEMINFO = (
    "MemTotal:       24603304 kB\nMemFree:         1000000 kB\nMemAvailable:    2000000 kB\nHugePages_Total:       0\n"
)


@pytest.fixture
def machine(tmp_path):
    """A function that writes what a kernel says, and what a container's limit is."""

    def write(limit: str | None = None, used: int = 0):
        (tmp_path / "meminfo").write_text(MEMINFO)
        if limit is not None:
            (tmp_path / "memory.max").write_text(f"{limit}\n")
            (tmp_path / "memory.current").write_text(f"{used}\n")
        return available_bytes(tmp_path / "meminfo", tmp_path)

    return write


def test_what_the_kernel_has_is_available(machine):
    assert machine() == machine("max") == 2_000_000 * 1024


def test_a_container_has_no_more_than_its_limit_leaves(machine):
    assert machine("1000000000", 400_000_000) == 600_000_000
    assert machine("1000000000", 1_200_000_000) == 0
    assert machine("9000000000", 1) == 2_000_000 * 1024


def test_where_no_linux_says_nothing_is_known(tmp_path):
    assert available_bytes(tmp_path / "absent", tmp_path) is None


def test_this_machine_has_some():
    assert 2**20 < available_bytes() < 2**50
