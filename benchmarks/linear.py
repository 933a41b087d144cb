"""One frozen linear layer, forward and backward: integers beside NF4 and a dense weight; for benchmarks/README.md.

    make bench-linear
    .venv/bin/python benchmarks/linear.py --tokens 1024 --inputs 4096 --outputs 4096 --dtype bfloat16

The layers take turns, `--rounds` times each; the fastest round counts, by the time of the process, which others on the
machine do not lengthen as they do a clock's. Held are the bytes of the stored weight. Peak is what the process takes
beside it during a pass, with output and gradients.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass, field

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn

from qlora_cli.model.device import DTYPES
from qlora_cli.model.integer.codes import pack
from qlora_cli.model.integer.linear import IntegerLinear
from qlora_cli.model.integer.rounding import round_to_nearest
from qlora_cli.train.callbacks.peak_memory import PeakMemory

HEAD = ("weight", "MiB held", "MiB peak", "forward ms", "with backward ms", "tokens/s")
MIB = 2**20


@dataclass
class Measured:
    """A layer and what was measured of it."""

    layer: nn.Module
    num_bytes: int
    forward: list[float] = field(default_factory=list)
    """Seconds of each round."""

    both: list[float] = field(default_factory=list)
    peak_bytes: int = 0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--inputs", type=int, default=4096)
    parser.add_argument("--outputs", type=int, default=4096)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    dtype = DTYPES[options.dtype]
    layers = layers_of(torch.randn(options.outputs, options.inputs) / options.inputs**0.5, dtype, options.group_size)
    x = torch.randn(options.tokens, options.inputs, dtype=dtype, requires_grad=True)
    slope = torch.randn(options.tokens, options.outputs, dtype=dtype)
    for _ in range(options.rounds):
        for measured in layers.values():
            measure(measured, x, slope)
    print(f"{options.tokens} tokens, {options.inputs} x {options.outputs}, {options.dtype}, 1 thread")
    for cells in (HEAD, ("---",) * len(HEAD), *(_cells(name, one, options.tokens) for name, one in layers.items())):
        print(f"| {' | '.join(cells)} |")


def layers_of(weight_OI: torch.Tensor, dtype: torch.dtype, group_size: int) -> dict[str, Measured]:
    """The same weight in each form. Shape letters: O = output features, I = input features."""
    num_out, num_in = weight_OI.shape
    dense = nn.Linear(num_in, num_out, bias=False, dtype=dtype).requires_grad_(False)
    dense.weight.copy_(weight_OI)
    nf4 = Linear4bit(num_in, num_out, bias=False, compute_dtype=dtype, quant_type="nf4")
    nf4.weight = Params4bit(weight_OI.to(dtype), requires_grad=False, quant_type="nf4", compress_statistics=True)
    nf4.to("cpu")
    constants = [value for value in nf4.weight.quant_state.as_dict(packed=True).values() if torch.is_tensor(value)]
    found = {
        str(dtype).removeprefix("torch."): Measured(dense, dense.weight.nbytes),
        "NF4": Measured(nf4, nf4.weight.nbytes + sum(value.nbytes for value in constants)),
    }
    for bits in (4, 3, 2):
        layer = IntegerLinear(num_in, num_out, bits, group_size)
        codes, layer.scales, layer.offsets = round_to_nearest(weight_OI, bits, group_size)
        layer.codes = pack(codes, bits)
        found[f"INT{bits}"] = Measured(layer, sum(part.nbytes for part in layer.buffers()))
    return found


def measure(measured: Measured, x: torch.Tensor, slope: torch.Tensor) -> None:
    """One pass forward and backward."""
    x.grad = None
    memory = PeakMemory()
    started = time.process_time()
    out = measured.layer(x)
    measured.forward.append(time.process_time() - started)
    out.backward(slope)
    measured.both.append(time.process_time() - started)
    measured.peak_bytes = max(measured.peak_bytes, memory.measured().get("resident", 0))


def _cells(name: str, measured: Measured, tokens: int) -> tuple[str, ...]:
    seconds = min(measured.both)
    return (
        name,
        f"{measured.num_bytes / MIB:.1f}",
        f"{measured.peak_bytes / MIB:.0f}",
        f"{1000 * min(measured.forward):.0f}",
        f"{1000 * seconds:.0f}",
        f"{tokens / seconds:,.0f}",
    )


if __name__ == "__main__":
    main()
