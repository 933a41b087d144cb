import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from qlora_cli.compat import keep_four_bit_weights_unpacked
from qlora_cli.deploy import merge_stream
from qlora_cli.errors import ArgumentError
from tests.deploy.merging import write_merged
from tests.deploy.models import load_base, logits, save_llama, with_adapter


def merged(tuned, base, out, dtype=None):
    write_merged(tuned, base, out, dtype)
    return AutoModelForCausalLM.from_pretrained(out)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Every matrix of the tiny bases takes several chunks."""
    monkeypatch.setattr(merge_stream, "CHUNK_NUMBERS", 1024)


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}, {"target_modules": ["q_proj"]}])
@pytest.mark.parametrize("quantization", ["none", "nf4", "fp4"])
def test_a_merged_llama_computes_what_base_and_adapter_compute(llama_folder, tmp_path, quantization, settings):
    tuned = with_adapter(load_base(llama_folder, quantization), **settings)
    plain = merged(tuned, llama_folder, tmp_path)
    assert (logits(tuned) - logits(plain)).abs().max() < 1e-4


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_merged_gpt2_computes_what_base_and_adapter_compute(gpt2_folder, tmp_path, quantization, settings):
    tuned = with_adapter(load_base(gpt2_folder, quantization), **settings)
    plain = merged(tuned, gpt2_folder, tmp_path)
    assert isinstance(plain.transformer.h[0].attn.c_proj, Conv1D)
    assert (logits(tuned) - logits(plain)).abs().max() < 1e-4


def test_a_merged_int8_base_differs_only_by_the_rounding_of_activations(llama_folder, tmp_path):
    tuned = with_adapter(load_base(llama_folder, "int8"))
    expected = logits(tuned)
    plain = merged(tuned, llama_folder, tmp_path)
    assert (expected - logits(plain)).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_are_in_the_merged_model(gpt2_folder, tmp_path, bias):
    tuned = with_adapter(load_base(gpt2_folder), bias=bias)
    with torch.no_grad():
        tuned.base_model.model.transformer.h[0].attn.c_attn.base_layer.bias.add_(1.0)
    assert (logits(tuned) - logits(merged(tuned, gpt2_folder, tmp_path))).abs().max() < 1e-4


def test_the_tuned_model_stays_as_it_was(llama_folder, tmp_path):
    tuned = with_adapter(load_base(llama_folder, "nf4"))
    before = logits(tuned)
    write_merged(tuned, llama_folder, tmp_path)
    assert torch.equal(before, logits(tuned))


def test_every_weight_gets_the_asked_dtype_and_nothing_stays_quantized(llama_folder, tmp_path):
    plain = merged(with_adapter(load_base(llama_folder, "nf4")), llama_folder, tmp_path, torch.bfloat16)
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.bfloat16}
    assert not hasattr(plain.config, "quantization_config")


def test_chunks_do_not_change_a_bit(llama_folder, tmp_path, monkeypatch):
    tuned = with_adapter(load_base(llama_folder, "nf4"), use_dora=True)
    write_merged(tuned, llama_folder, tmp_path / "small")
    monkeypatch.setattr(merge_stream, "CHUNK_NUMBERS", 2**30)
    write_merged(tuned, llama_folder, tmp_path / "whole")
    small, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("small", "whole"))
    # The sums of a product may be taken in another order for another number of rows.
    assert all(torch.allclose(small[name], whole[name], atol=1e-6) for name in whole)


def test_stored_values_are_those_that_bitsandbytes_dequantizes(llama_folder, tmp_path):
    base = load_base(llama_folder, "nf4")
    expected = base.model.layers[1].mlp.up_proj
    write_merged(with_adapter(base, target_modules=["q_proj"]), llama_folder, tmp_path)
    from qlora_cli.model.dequantize import dequantized_weight

    stored = load_file(tmp_path / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(stored, dequantized_weight(expected))


def test_tied_embeddings_stay_one_tensor(tied_llama_folder, tmp_path):
    plain = merged(with_adapter(load_base(tied_llama_folder, "nf4")), tied_llama_folder, tmp_path)
    assert plain.get_input_embeddings().weight is plain.get_output_embeddings().weight


@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
    ],
)
def test_a_tie_that_training_broke_is_given_up(tied_llama_folder, tmp_path, settings):
    tuned = with_adapter(load_base(tied_llama_folder, "nf4"), **settings)
    plain = merged(tuned, tied_llama_folder, tmp_path)
    assert (logits(tuned) - logits(plain)).abs().max() < 1e-4


def test_trained_copies_take_the_place_of_modules_to_save(llama_folder, tmp_path):
    tuned = with_adapter(load_base(llama_folder, "nf4"), modules_to_save=["lm_head"])
    trained = tuned.base_model.model.lm_head.modules_to_save["default"].weight
    assert torch.equal(merged(tuned, llama_folder, tmp_path).lm_head.weight, trained)


@pytest.mark.parametrize(
    "settings", [{"lora_bias": True, "target_modules": ["c_attn"]}, {"trainable_token_indices": [3]}]
)
def test_biases_and_single_tokens_of_gpt2_are_folded(gpt2_folder, tmp_path, settings):
    tuned = with_adapter(load_base(gpt2_folder), **settings)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "trainable_tokens_delta" in name or "lora_B.default.bias" in name:
                parameter.add_(0.1)
    assert (logits(tuned) - logits(merged(tuned, gpt2_folder, tmp_path))).abs().max() < 1e-4


def test_a_variant_that_is_no_weight_update_is_refused(llama_folder, tmp_path):
    tuned = with_adapter(load_base(llama_folder), init_lora_weights="mica", target_modules=["q_proj"])
    with pytest.raises(ArgumentError, match="cannot be folded into a weight matrix"):
        write_merged(tuned, llama_folder, tmp_path)


def test_shards_and_their_index_are_the_bases(tmp_path):
    base = tmp_path / "base"
    save_llama(tmp_path / "one", tie_word_embeddings=False)
    AutoModelForCausalLM.from_pretrained(tmp_path / "one").save_pretrained(base, max_shard_size="100KB")
    tuned = with_adapter(load_base(base))
    plain = merged(tuned, base, tmp_path / "out")
    index = "model.safetensors.index.json"
    assert json.loads((tmp_path / "out" / index).read_text()) == json.loads((base / index).read_text())
    assert (logits(tuned) - logits(plain)).abs().max() < 1e-4


def test_a_base_of_pickled_weights_becomes_safetensors(llama_folder, tmp_path):
    from qlora_cli.deploy.checkpoint import open_checkpoint

    base = tmp_path / "base"
    base.mkdir()
    torch.save(load_file(llama_folder / "model.safetensors"), base / "pytorch_model.bin")
    with open_checkpoint(base, allow_pickle=True) as pickled, open_checkpoint(llama_folder) as safe:
        assert pickled.tensors.keys() == safe.tensors.keys()
        for key in safe.tensors:
            assert torch.equal(pickled.read(key), safe.read(key))


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("settings", [{}, {"target_modules": ["q_proj"]}])
def test_a_base_that_bitsandbytes_has_stored_becomes_plain(llama_folder, tmp_path, quantization, settings):
    packed = tmp_path / "packed"
    load_base(llama_folder, quantization, torch.bfloat16).save_pretrained(packed)
    base = AutoModelForCausalLM.from_pretrained(packed, dtype=torch.float32)
    keep_four_bit_weights_unpacked(base)
    tuned = with_adapter(base, **settings)
    expected = logits(tuned)
    plain = merged(tuned, packed, tmp_path / "out")
    assert not hasattr(plain.config, "quantization_config")
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.bfloat16}
    bound = 0.05 if quantization == "int8" else 0.02  # int8 rounds activations, the others compute in bfloat16
    assert (expected - logits(plain)).norm() < 0.05 * expected.norm()
    exact = tmp_path / "exact"
    write_merged(tuned, packed, exact, torch.float32)
    assert (expected - logits(AutoModelForCausalLM.from_pretrained(exact))).norm() < bound * expected.norm()
