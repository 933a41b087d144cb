"""Codes of training in the files of MLX and llama.cpp, as those programs read them: `make test-engines`."""

import os
import subprocess

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from qlora_cli.deploy.engines.engine import Questions
from qlora_cli.deploy.engines.llama_cpp import converter_folder
from qlora_cli.deploy.formats.format import WriteJob
from qlora_cli.deploy.formats.table import FORMATS
from qlora_cli.deploy.verify import MAX_KL_ROUNDED, compare
from qlora_cli.model.tuned import TunedSource
from qlora_cli.recipe.schema import ModelSection
from tests.deploy.integers import dequantized, save_integers, unpack
from tests.deploy.models import cut_as_gpt2, save_llama

pytestmark = pytest.mark.slow
needs_mlx = pytest.mark.skipif("QLORA_MLX_PYTHON" not in os.environ, reason="needs QLORA_MLX_PYTHON")
needs_gguf = pytest.mark.skipif("QLORA_GGUF_PYTHON" not in os.environ, reason="needs QLORA_GGUF_PYTHON")

ROW = list(range(1, 60))
KINDS = [(4, 32), (3, 64), (2, 32)]

DEQUANTIZE = """
import sys
sys.path.insert(0, sys.argv[1] + "/gguf-py")
import gguf, numpy as np
from safetensors.numpy import save_file
tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(sys.argv[2]).tensors}
save_file({name: np.ascontiguousarray(values, np.float32) for name, values in tensors.items()}, sys.argv[3])
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return cut_as_gpt2(save_llama(tmp_path_factory.mktemp("base"), tie_word_embeddings=False))


@pytest.fixture(params=KINDS, ids=lambda kind: f"int{kind[0]}-g{kind[1]}")
def merged(request, base, tmp_path):
    """A merged model in integers and its bits."""
    bits, group_size = request.param
    return save_integers(base, tmp_path / "merged", bits=bits, group_size=group_size, is_merged=True), bits


@torch.no_grad()
def trained_logits(base, folder, bits):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    model.load_state_dict(dequantized(folder, bits))
    return [model(input_ids=torch.tensor([ROW])).logits[0]]


def export(name, folder, out):
    out.mkdir()
    job = WriteJob(folder, out, TunedSource(folder, ModelSection(base_model=str(folder))), [ROW])
    FORMATS[name].codes.write(job)
    answers = FORMATS[name].engine.ask(out, Questions([ROW], [], frozenset()))
    return answers.logits


@needs_mlx
def test_mlx_computes_what_was_trained(merged, base, tmp_path):
    folder, bits = merged
    agreement = compare(trained_logits(base, folder, bits), export("mlx", folder, tmp_path / "out"))
    assert agreement.max_logit_difference < 2e-4


@needs_gguf
def test_llama_cpp_has_the_codes_of_training_and_computes_nearly_the_same(merged, base, tmp_path):
    folder, bits = merged
    agreement = compare(trained_logits(base, folder, bits), export("gguf", folder, tmp_path / "out"))
    # The file's weights are within 7e-6; llama.cpp rounds activations to int8 as well: 1.1e-3 to 1.4e-3 here.
    assert agreement.mean_kl < MAX_KL_ROUNDED
    command = [os.environ["QLORA_GGUF_PYTHON"], "-c", DEQUANTIZE, str(converter_folder())]
    read = tmp_path / "read.safetensors"
    subprocess.run([*command, str(tmp_path / "out" / "model-q4_1.gguf"), str(read)], check=True)
    found, stored = load_file(read), load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.down_proj"
    scales, offsets = stored[f"{name}.scales"].float(), stored[f"{name}.offsets"]
    codes = torch.tensor(unpack(stored[f"{name}.codes"], bits)).reshape(*scales.shape, -1)
    values = found["blk.0.ffn_down.weight"].reshape(codes.shape) - offsets.half().float()[..., None]
    assert torch.equal((values / scales[..., None]).round().to(torch.int64), codes)
