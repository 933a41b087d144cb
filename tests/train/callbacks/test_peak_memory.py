"""The meter sees what is taken after it was made, and not what was taken and given back before."""

from __future__ import annotations

import torch

from qlora_cli.train.callbacks.peak_memory import PeakMemory

MIB = 2**20


def take(num_mib: int) -> None:
    """Touch this much memory, in one piece that goes back to the system immediately."""
    torch.zeros(num_mib * MIB, dtype=torch.uint8).add_(1)


def test_it_measures_what_a_session_takes_at_most():
    take(700)
    meter = PeakMemory()
    take(200)
    take(100)
    assert 195 * MIB < meter.measured()["resident"] < 400 * MIB
