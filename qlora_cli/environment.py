"""Environment variables that this project sets for the libraries below; a value that the user set stays."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

COMPILER_OFF = "TORCHDYNAMO_DISABLE"
"""Torch looks at it whenever something is handed to `torch.compile`."""


def send_no_telemetry() -> None:
    """Keep the libraries from reporting usage over the network; a tool for private data sends nothing.

    `SFTTrainer` would send a request when it is made (trl 1.16.0).
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def let_idle_threads_sleep() -> None:
    """Make OpenMP threads sleep while they wait for each other; call it before torch is imported.

    Where another process takes one of the cores, waiting threads would spin on the others, and a step on the CPU take
    many times as long (torch 2.13 with GNU OpenMP on 2 cores, one of them taken: 12 s instead of 2 s).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextmanager
def nothing_is_compiled() -> Iterator[None]:
    """A block in which libraries are imported without torch's compiler.

    bitsandbytes 0.50 hands four of its functions to `torch.compile` as it is imported, for devices without kernels of
    their own and for odd shapes on a CPU. That loads Inductor, a fifth of the time that imports take, and the first
    weight of an odd shape took 11 s to unpack, with the same result as uncompiled in 0.5 ms. After the block torch
    compiles what it is asked to: flex attention's kernel, for one, when it is first used.
    """
    before = os.environ.get(COMPILER_OFF)
    os.environ.setdefault(COMPILER_OFF, "1")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(COMPILER_OFF, None)


def skip_pydantic_plugins() -> None:
    """Keep pydantic from looking through every installed package for plugins, of which this project uses none.

    It would take 20 ms of each start (pydantic 2.14).
    """
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
