"""How busy, how warm and how hungry the GPU is, as nvidia-smi says it."""

from __future__ import annotations

import torch


def gpu_state() -> str:
    """Share of the time in which a kernel ran, temperature and power of this process's GPU, as "97% 71 °C 312 W".

    Empty where there is no GPU or its driver does not tell: a card in a container may keep any of them to itself.
    """
    if not torch.cuda.is_available():
        return ""
    parts = []
    for read, factor, unit in (
        (torch.cuda.utilization, 1, "%"),
        (torch.cuda.temperature, 1, " °C"),
        (torch.cuda.power_draw, 1000, " W"),  # it is told in milliwatts
    ):
        try:
            parts.append(f"{read() / factor:.0f}{unit}")
        except Exception:  # noqa: BLE001 - NVML's errors share no public class but Exception, and training goes on
            continue
    return " ".join(parts)
