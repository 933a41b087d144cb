"""Packed weights are read as the libraries that pack them unpack them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from qlora_cli.errors import IdentityError
from qlora_cli.model.dequantize import dequantized_weight, is_quantized
from qlora_cli.model.packed_weights import packed_weights
from tests.deploy.integers import dequantized, save_integers
from tests.deploy.models import save_llama

SHAPE = {
    "hidden_size": 72,  # no multiple of a block of 64 weights: rows begin within a block
    "intermediate_size": 136,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "vocab_size": 96,
}

STORED = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "nf4 of once quantized constants": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
    "nf4 kept as bfloat16": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_quant_storage": torch.bfloat16,
    },
    "int8": {"load_in_8bit": True},
}


@pytest.fixture
def llama_in_integers(tmp_path):
    """Makes a Llama of 14 linear layers in integers."""
    base = save_llama(tmp_path / "base", tie_word_embeddings=False)
    return lambda bits, group_size: save_integers(base, tmp_path / "out", bits=bits, group_size=group_size)


@pytest.fixture(params=STORED)
def saved(request, tmp_path):
    """A model folder stored by bitsandbytes, and the weights of its layers by name as they multiply."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).to(torch.bfloat16).save_pretrained(tmp_path / "plain")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=BitsAndBytesConfig(**STORED[request.param]), dtype=torch.bfloat16
    )
    model.save_pretrained(tmp_path / "packed")
    weights = {
        f"{name}.weight": dequantized_weight(module).float()
        for name, module in model.named_modules()
        if is_quantized(module)
    }
    return tmp_path / "packed", weights


def test_bitsandbytes_weights_read_as_they_multiply(saved):
    folder, weights = saved
    packed = packed_weights(folder)
    assert packed.keys() == weights.keys() != set()
    for name, weight in weights.items():
        assert packed[name].shape == tuple(weight.shape)
        assert torch.equal(packed[name].rows(0, weight.shape[0]), weight), name


@pytest.mark.parametrize("height", [1, 7, 50])
def test_rows_are_those_of_the_whole(saved, height):
    folder, weights = saved
    for name, packed in packed_weights(folder).items():
        parts = [packed.rows(start, min(start + height, 72)) for start in range(0, 72, height)]
        assert torch.equal(torch.cat(parts), weights[name][:72]), name


def test_every_stored_tensor_is_accounted_for(saved):
    folder, _ = saved
    packed = packed_weights(folder)
    tensors = next(iter(packed.values())).tensors
    stands_for = {stored for one in packed.values() for stored in one.stored_names}
    plain = {name for name in tensors.names if name not in stands_for}
    assert all("layernorm" in name or name.split(".")[-2] in ("norm", "embed_tokens", "lm_head") for name in plain)


def fp8_folder(folder, weight, scale, block):
    folder.mkdir(exist_ok=True)
    save_file({"up_proj.weight": weight, "up_proj.weight_scale_inv": scale}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"weight_block_size": block}}))
    return packed_weights(folder)["up_proj.weight"]


def test_blocks_of_fp8_are_scaled_by_their_own_scale_and_may_be_cut_short(tmp_path):
    weight = torch.ones(5, 6).to(torch.float8_e4m3fn)
    scale = torch.tensor([[1.0, 2.0], [3.0, 4.0]])  # ceil(5 / 4) x ceil(6 / 4)
    packed = fp8_folder(tmp_path, weight, scale, [4, 4])
    wanted = torch.tensor([[1.0] * 4 + [2.0] * 2] * 4 + [[3.0] * 4 + [4.0] * 2])
    assert torch.equal(packed.rows(0, 5), wanted)
    assert torch.equal(packed.rows(3, 5), wanted[3:])


def test_a_weight_with_one_scale_and_scales_that_are_exponents(tmp_path):
    weight = torch.full((4, 4), 1.5).to(torch.float8_e4m3fn)
    assert torch.equal(fp8_folder(tmp_path, weight, torch.tensor(2.0), None).rows(1, 3), torch.full((2, 4), 3.0))
    exponents = torch.tensor([[127], [129]], dtype=torch.uint8)
    packed = fp8_folder(tmp_path, weight, exponents, [2, 4])
    assert packed.rows(0, 4)[:, 0].tolist() == [1.5, 1.5, 6.0, 6.0]


def test_mxfp4_reads_as_transformers_reads_it(tmp_path):
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 8, 2, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(110, 140, (3, 8, 2), generator=generator, dtype=torch.uint8)
    save_file({"experts.down_proj_blocks": blocks, "experts.down_proj_scales": scales}, tmp_path / "model.safetensors")
    packed = packed_weights(tmp_path)["experts.down_proj"]
    wanted = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    assert packed.shape == tuple(wanted.shape) == (3, 64, 8)
    assert torch.equal(packed.rows(1, 3), wanted[1:])


def test_a_packed_weight_of_which_a_part_is_missing_is_refused(tmp_path):
    save_file({"up_proj.weight_scale_inv": torch.ones(1, 1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(IdentityError, match=r"lacks 'up_proj\.weight'"):
        packed_weights(tmp_path)


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (3, 32), (2, 64)])
def test_integers_are_read_as_codes_times_scale_plus_offset(llama_in_integers, bits, group_size):
    folder = llama_in_integers(bits, group_size)
    packed, plain = packed_weights(folder), dequantized(folder, bits)
    assert len(packed) == 14  # 7 linear layers in each of 2 blocks
    for name, one in packed.items():
        assert one.shape == tuple(plain[name].shape)
        assert torch.equal(one.rows(0, one.shape[0]), plain[name])
        assert torch.equal(one.rows(3, 9), plain[name][3:9])
