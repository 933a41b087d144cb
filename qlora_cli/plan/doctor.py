"""What this machine has, and small real trials of what training needs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import bitsandbytes as bnb
import torch

from qlora_cli.model.device import dtype_name, pick_device, pick_dtype
from qlora_cli.run.manifest import library_versions

OPTIONAL_PACKAGES = {"rouge_score": "eval", "tensorboard": "track", "wandb": "track", "mlflow": "track"}


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    what: str
    found: str
    is_fine: bool = True

    def cells(self) -> tuple[str, str, str]:
        """The line's cells as a person reads them."""
        return ("ok" if self.is_fine else "FAIL", self.what, self.found)

    def as_dict(self) -> dict[str, Any]:
        """The finding as JSON holds it."""
        return asdict(self)


def examine() -> list[Finding]:
    """Versions, devices, disk, and trials of NF4, its backward pass and the 8-bit optimizer on the device in use."""
    device = pick_device()
    versions = ", ".join(f"{name} {number}" for name, number in library_versions().items())
    return [
        Finding("versions", versions),
        _describe_device(device),
        Finding("model.dtype: auto means", dtype_name(pick_dtype("auto", device))),
        _trial("NF4 round trip", _try_nf4, device),
        _trial("step through NF4, 8-bit AdamW", _try_training_step, device),
        _find_compiler(device),
        _describe_disk(),
        _describe_extras(),
        Finding("Hub", "offline (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") == "1" else "online"),
    ]


def _describe_device(device: torch.device) -> Finding:
    if device.type == "cpu":
        return Finding("device", f"CPU, {torch.get_num_threads()} threads; no CUDA GPU is visible to torch")
    properties = torch.cuda.get_device_properties(device)
    memory = f"{properties.total_memory / 2**30:.1f} GiB"
    return Finding("device", f"{properties.name}, {memory}, compute capability {properties.major}.{properties.minor}")


def _trial(what: str, run: Callable[[torch.device], tuple[str, bool]], device: torch.device) -> Finding:
    """A trial's outcome; one that breaks is a finding too."""
    try:
        return Finding(what, *run(device))
    except (RuntimeError, NotImplementedError, AttributeError, OSError) as fault:
        return Finding(what, f"breaks: {' '.join(str(fault).split())[:200]}", is_fine=False)


def _try_nf4(device: torch.device) -> tuple[str, bool]:
    """Quantize a normal matrix to NF4 and back; the mean error of NF4 on N(0, 1) in blocks of 64 is about 0.073."""
    torch.manual_seed(0)
    weight = torch.randn(256, 256, device=device)
    packed, state = bnb.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    error = (bnb.functional.dequantize_4bit(packed, state) - weight).abs().mean().item()
    return f"mean error {error:.4f} on N(0, 1), expected 0.07", 0.06 < error < 0.09


def _try_training_step(device: torch.device) -> tuple[str, bool]:
    """One optimizer step through a frozen NF4 layer with the paged 8-bit optimizer."""
    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4").to(device)
    trained = torch.nn.Parameter(torch.zeros(64, 64, device=device))
    optimizer = bnb.optim.PagedAdamW8bit([trained], lr=0.1)
    inputs = torch.randn(4, 64, device=device)
    layer(inputs @ trained + inputs).square().mean().backward()
    has_gradient = trained.grad is not None and bool(trained.grad.abs().sum() > 0)
    optimizer.step()
    moved = bool(trained.detach().abs().sum() > 0)
    paging = "paged" if getattr(optimizer.state[trained]["state1"], "is_paged", False) else "not paged: no GPU"
    works = has_gradient and moved
    return f"{'works' if works else 'nothing moved'} ({paging})", works


def _find_compiler(device: torch.device) -> Finding:
    """On a GPU, trl computes the loss in a Triton kernel, which is compiled at the first step."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if device.type == "cpu":
        return Finding("C compiler", compiler or "none; not needed on a CPU")
    return Finding("C compiler", compiler or "none: install gcc and Python's headers", compiler is not None)


def _describe_disk() -> Finding:
    usage = shutil.disk_usage(".")
    return Finding("disk free here", f"{usage.free / 2**30:.0f} GiB of {usage.total / 2**30:.0f} GiB")


def _describe_extras() -> Finding:
    missing = {extra for package, extra in OPTIONAL_PACKAGES.items() if find_spec(package) is None}
    advice = "; ".join(f"pip install 'qlora[{extra}]'" for extra in sorted(missing))
    return Finding("optional packages", f"some are missing: {advice}" if missing else "all installed")
