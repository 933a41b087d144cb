"""The Triton kernel against the layer's own arithmetic: by Triton's interpreter on a CPU, and on a card."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from qlora_cli.model.integer.codes import pack

CASES = [(bits, group_size) for bits in (4, 3, 2) for group_size in (32, 128)]

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed (make test-engines)")


def compare(device):
    """Every case in every type; the interpreter cuts to bfloat16 where a card rounds, so one step is allowed there."""
    from qlora_cli.model.integer.kernel import written_out

    generator = torch.Generator().manual_seed(0)
    for bits, group_size in CASES:
        for shape in ((3, 2048 + 128), (5, 128)):
            codes = torch.randint(2**bits, shape, dtype=torch.uint8, generator=generator)
            scales = torch.rand(shape[0], shape[1] // group_size, generator=generator).half()
            offsets = torch.randn(scales.shape, generator=generator)
            expected = codes.unflatten(1, (scales.shape[1], -1)) * scales.float()[..., None] + offsets[..., None]
            given = [tensor.to(device) for tensor in (pack(codes, bits), scales, offsets)]
            for dtype, steps in ((torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)):
                found = written_out(*given, bits, dtype)
                assert found.dtype is dtype
                assert found.shape == shape
                error = (found.cpu().float() - expected.flatten(1)).abs() / expected.flatten(1).abs().clamp_min(1.0)
                assert error.max() <= steps, (bits, group_size, dtype)


@needs_triton
def test_the_interpreted_kernel_writes_the_weights():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = "from tests.model.integer.test_kernel import compare; compare('cpu')"
    done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_triton
@pytest.mark.gpu
def test_the_kernel_on_a_card_writes_the_weights():
    compare("cuda")
