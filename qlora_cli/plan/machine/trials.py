"""Small real computations of what training needs, on the device in use."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import bitsandbytes as bnb
import torch

from qlora_cli.constants import GIB
from qlora_cli.model.device import dtype_name, pick_dtype
from qlora_cli.plan.machine.extras import one_line
from qlora_cli.plan.machine.finding import DoctorFinding

SIZE = 256
"""Rows and columns of the matrices."""


def try_device(device: torch.device) -> Iterator[DoctorFinding]:
    """A product and its gradient in float32 and in the dtype of `auto`, NF4, and a step through NF4."""
    dtype = pick_dtype("auto", device)
    yield _trial("device", lambda: _try_product(device, torch.float32, _describe(device)))
    yield _trial("model.dtype: auto means", lambda: _try_product(device, dtype, dtype_name(dtype)))
    yield _trial("NF4 round trip", lambda: _try_nf4(device))
    yield _trial("step through NF4, 8-bit AdamW", lambda: _try_training_step(device))


def _describe(device: torch.device) -> str:
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads; no CUDA GPU is visible to torch"
    properties = torch.cuda.get_device_properties(device)
    memory = f"{properties.total_memory / GIB:.1f} GiB"
    return f"{properties.name}, {memory}, compute capability {properties.major}.{properties.minor}"


def _trial(what: str, run: Callable[[], tuple[str, bool]]) -> DoctorFinding:
    """A trial's outcome; one that breaks is a finding too."""
    try:
        return DoctorFinding(what, *run())
    except (RuntimeError, NotImplementedError, AttributeError, OSError) as fault:
        return DoctorFinding(what, f"breaks: {one_line(fault)}", is_fine=False)


def _try_product(device: torch.device, dtype: torch.dtype, name: str) -> tuple[str, bool]:
    """Compare a matrix product and its gradient with those that the CPU computes in float64.

    The factors are whole numbers from -3 to 3, exact in every dtype. Only the rounding of a sum is left: to half a
    unit in its last place, of at most 9 x 256.
    """
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randint(-3, 4, (SIZE, SIZE), generator=generator).double() for _ in range(2))
    factor = left.to(device, dtype).requires_grad_()
    product = factor @ right.to(device, dtype)
    product.backward(right.to(device, dtype))
    assert factor.grad is not None, "a leaf that asks for its gradient gets one"
    bound = 9 * SIZE * torch.finfo(dtype).eps
    pairs = ((product, left @ right), (factor.grad, right @ right.T))
    error = max((computed.detach().double().cpu() - exact).abs().max().item() for computed, exact in pairs)
    if error <= bound:
        return name, True
    return f"{name}: a matrix product or its gradient is wrong by up to {error:.3g}", False


def _try_nf4(device: torch.device) -> tuple[str, bool]:
    """Quantize a normal matrix to NF4 and back; the mean error of NF4 on N(0, 1) in blocks of 64 is about 0.073."""
    torch.manual_seed(0)
    weight = torch.randn(SIZE, SIZE, device=device)
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
