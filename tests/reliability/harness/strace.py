"""Faults that the kernel itself reports: strace makes the k-th call of a kind fail, or kills the process at it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.harness.forkserver import Child, ForkServer

STORING_CALLS = (
    *("write", "pwrite64", "writev", "fsync", "fdatasync", "rename", "renameat", "renameat2"),
    *("unlink", "unlinkat", "rmdir", "mkdir", "mkdirat", "ftruncate", "fallocate"),
)
"""System calls that change what is on the disk."""


@dataclass(frozen=True)
class Fault:
    """What happens at one call."""

    call: str
    number: int
    """1 for the first such call."""

    effect: str
    """`error=ENOSPC` or `signal=SIGKILL`, as strace writes it."""

    def __str__(self) -> str:
        return f"{self.effect} at {self.call} {self.number}"


def need_strace() -> None:
    """Skip the test where strace cannot watch a process."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed, and these faults are injected by it")
    tried = subprocess.run(["strace", "-e", "trace=none", "true"], capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"strace may not watch processes here: {tried.stderr.strip()}")


def start_under_strace(
    server: ForkServer, function: str, arguments: dict[str, Any], *options: str, log: Path
) -> tuple[Child, subprocess.Popen]:
    """A child of `server` that strace watches from its function's first instruction on."""
    child = server.start(function, arguments, log=log, is_held=True)
    tracer = subprocess.Popen(["strace", *options, "-p", str(child.pid)], stderr=subprocess.PIPE, text=True)
    notice = tracer.stderr.readline()
    assert "attached" in notice, notice
    os.kill(child.pid, signal.SIGCONT)
    return child, tracer


def run_with_fault(server: ForkServer, function: str, arguments: dict[str, Any], fault: Fault, *, log: Path) -> int:
    """The exit code of a child that meets `fault`."""
    inject = f"inject={fault.call}:{fault.effect}:when={fault.number}"
    options = ("-o", os.devnull, "-e", f"trace={fault.call}", "-e", inject)
    child, tracer = start_under_strace(server, function, arguments, *options, log=log)
    exit_code = child.wait()
    tracer.communicate(timeout=30)
    return exit_code


@dataclass(frozen=True)
class Call:
    """One system call that changes what is on the disk."""

    name: str
    path: str
    """What it names first, or the file behind its descriptor."""


def trace_calls(
    server: ForkServer, function: str, arguments: dict[str, Any], *, log: Path, exit_code: int = 0
) -> list[Call]:
    """The calls that an undisturbed child, which ends with `exit_code`, makes in order."""
    trace = log.with_suffix(".trace")
    options = ("-y", "-s", "0", "-o", str(trace), "-e", f"trace={','.join(STORING_CALLS)}")
    child, tracer = start_under_strace(server, function, arguments, *options, log=log)
    assert child.wait() == exit_code, log.read_text()
    tracer.communicate(timeout=30)
    found = re.findall(r"^(\w+)\((?:\d+<([^>]*)>|\"([^\"]*)\"|)", trace.read_text(), flags=re.MULTILINE)
    return [Call(name, behind or named) for name, behind, named in found]
