"""Environment variables that this project sets for the libraries below; a value that the user set stays."""

from __future__ import annotations

import os


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


def skip_pydantic_plugins() -> None:
    """Keep pydantic from looking through every installed package for plugins, of which this project uses none.

    It would take 20 ms of each start (pydantic 2.14).
    """
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
