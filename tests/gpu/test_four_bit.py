"""4-bit weights on CUDA: they lie on the GPU, and hold the numbers that the CPU's kernels make of them."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest
import torch

from qlora_cli.model.base import load_base
from qlora_cli.model.device import pick_device, pick_dtype
from qlora_cli.recipe.schema import ModelSection, QuantizationSection
from tests.gpu.support import NEEDS_GPU

pytestmark = NEEDS_GPU


def test_every_linear_layer_but_the_head_is_nf4_on_the_gpu(tiny_base):
    base = load_base(ModelSection(base_model=str(tiny_base)), QuantizationSection())
    layers = [module for module in base.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert len(layers) == 2 * 7  # q, k, v, o, gate, up and down of two layers
    for layer in layers:
        assert layer.weight.device.type == "cuda"
        assert layer.weight.dtype is torch.uint8
        assert layer.weight.quant_state.quant_type == "nf4"
        assert layer.weight.quant_state.nested
        assert layer.compute_dtype is base.dtype
    assert type(base.get_output_embeddings()) is torch.nn.Linear
    assert {parameter.device for parameter in base.parameters()} == {pick_device()}


def test_auto_means_bfloat16_from_compute_capability_8_on_and_float16_before():
    expected = torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16
    assert pick_dtype("auto", pick_device()) is expected


def quantized(quant_type: str, *, double_quant: bool, device: str):
    torch.manual_seed(0)
    weight = torch.randn(256, 512).to(device)  # 2048 blocks of 64, so 8 blocks of block constants
    packed, state = bnb.functional.quantize_4bit(weight, quant_type=quant_type, compress_statistics=double_quant)
    return weight, packed, state


@pytest.mark.parametrize("double_quant", [False, True], ids=["plain", "double"])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_the_cpu_reads_the_same_weights_out_of_what_the_gpu_packed(quant_type, double_quant):
    _, packed, state = quantized(quant_type, double_quant=double_quant, device="cuda")
    on_gpu = bnb.functional.dequantize_4bit(packed, state).cpu()
    state.to("cpu")
    on_cpu = bnb.functional.dequantize_4bit(packed.cpu(), state)
    assert torch.allclose(on_gpu, on_cpu, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_gpu_and_cpu_choose_the_same_levels_but_for_ties(quant_type):
    weight, packed, state = quantized(quant_type, double_quant=False, device="cuda")
    _, packed_on_cpu, state_on_cpu = quantized(quant_type, double_quant=False, device="cpu")
    assert torch.equal(state.absmax.cpu().flatten(), state_on_cpu.absmax.flatten())
    share_same = (packed.cpu().flatten() == packed_on_cpu.flatten()).float().mean().item()
    assert share_same > 0.999  # a weight within rounding of the middle of two levels may fall to either
    error = (bnb.functional.dequantize_4bit(packed, state) - weight).abs().mean().item()
    error_on_cpu = (bnb.functional.dequantize_4bit(packed_on_cpu, state_on_cpu) - weight.cpu()).abs().mean().item()
    assert error == pytest.approx(error_on_cpu, rel=1e-4)


def test_the_gpu_computes_what_the_cpu_computes(tiny_base):
    section = ModelSection(base_model=str(tiny_base), dtype="float32")
    ids = torch.arange(24)[None]
    with torch.no_grad():
        on_gpu = load_base(section, QuantizationSection()).eval()(ids.cuda()).logits.cpu()
        on_cpu = load_base(section, QuantizationSection(), device=torch.device("cpu")).eval()(ids).logits
    assert (on_gpu - on_cpu).abs().max() < 0.01 * on_cpu.abs().max()
