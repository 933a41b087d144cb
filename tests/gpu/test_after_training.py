"""What follows training, on CUDA: scoring, merging and answering, from one run."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest
import torch

from qlora_cli.data.render.renderer import Renderer
from qlora_cli.deploy.merge import MergeOptions, merge_run
from qlora_cli.model.dequantize import dequantized_weight, is_quantized
from qlora_cli.model.tuned import load_tuned
from qlora_cli.run.directory import RunDirectory
from qlora_cli.serve.generation import SamplingOptions, generate_answer
from qlora_cli.train.session import TrainOptions, train_recipe
from tests.gpu.support import NEEDS_GPU

pytestmark = NEEDS_GPU


def trained(gpu_recipe, path, **sections) -> RunDirectory:
    run = RunDirectory(path)
    train_recipe(gpu_recipe(training={"max_steps": 20}, **sections), run, TrainOptions())
    return run


@pytest.mark.parametrize("quant_type", ["nf4", "fp4", "int8"])
def test_a_merge_keeps_its_bound_and_the_adapter_does_far_more(gpu_recipe, tmp_path, quant_type):
    run = trained(gpu_recipe, tmp_path, quantization={"quant_type": quant_type})
    merged = merge_run(run.path, None, MergeOptions())
    assert merged.agreement.mean_kl <= merged.max_kl
    assert merged.effect.mean_kl > 10 * merged.agreement.mean_kl


def test_a_float32_merge_is_the_tuned_model_to_the_last_digits(gpu_recipe, tmp_path):
    run = trained(gpu_recipe, tmp_path, model={"dtype": "float32"})
    merged = merge_run(run.path, None, MergeOptions(dtype="float32"))
    assert merged.max_kl == 1e-6
    assert merged.agreement.mean_kl <= 1e-6
    assert merged.agreement.top1_agreement > 0.99


@pytest.mark.parametrize("quant_type", ["nf4", "int8"])
def test_an_eval_forward_leaves_the_quantized_weights_as_they_were(gpu_recipe, tmp_path, quant_type):
    run = trained(gpu_recipe, tmp_path, quantization={"quant_type": quant_type})
    model = load_tuned(run.path).model
    layers = [module for module in model.modules() if is_quantized(module)]
    before = [dequantized_weight(layer).clone() for layer in layers]
    with torch.no_grad():
        model(torch.arange(12, device="cuda")[None])
    assert any(isinstance(layer, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt) for layer in layers)
    for layer, weight in zip(layers, before, strict=True):
        assert torch.equal(dequantized_weight(layer), weight)


def test_an_answer_streams_from_the_gpu(gpu_recipe, tmp_path):
    tuned = load_tuned(trained(gpu_recipe, tmp_path).path)
    assert tuned.model.device.type == "cuda"
    pieces: list[str] = []
    messages = [{"role": "user", "content": "add 3 and 4"}]
    answer = generate_answer(
        tuned, Renderer(tuned.tokenizer), messages, SamplingOptions(max_new_tokens=8), pieces.append
    )
    assert 0 < answer.num_new_tokens <= 8
    assert "".join(pieces) == answer.text
