import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from qlora_cli.deploy.merge_weights import merge_adapter
from qlora_cli.errors import ArgumentError
from tests.deploy.models import load_base, logits, with_adapter


def reloaded(plain, folder):
    plain.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}, {"target_modules": ["q_proj"]}])
@pytest.mark.parametrize("quantization", ["none", "nf4", "fp4"])
def test_folded_llama_computes_what_base_and_adapter_compute(llama_folder, tmp_path, quantization, settings):
    tuned = with_adapter(load_base(llama_folder, quantization), **settings)
    plain = reloaded(merge_adapter(tuned, torch.float32), tmp_path)
    assert (logits(tuned) - logits(plain)).abs().max() < 1e-4


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_folded_gpt2_computes_what_base_and_adapter_compute(gpt2_folder, tmp_path, quantization, settings):
    tuned = with_adapter(load_base(gpt2_folder, quantization), **settings)
    plain = reloaded(merge_adapter(tuned, torch.float32), tmp_path)
    assert isinstance(plain.transformer.h[0].attn.c_proj, Conv1D)
    assert (logits(tuned) - logits(plain)).abs().max() < 1e-4


def test_folded_int8_differs_only_by_the_rounding_of_activations(llama_folder, tmp_path):
    tuned = with_adapter(load_base(llama_folder, "int8"))
    expected = logits(tuned)
    plain = reloaded(merge_adapter(tuned, torch.float32), tmp_path)
    assert (expected - logits(plain)).norm() < 0.05 * expected.norm()


def test_fold_after_a_forward_pass_is_the_fold_before_it(llama_folder):
    for quantization in ("nf4", "int8"):
        tuned = with_adapter(load_base(llama_folder, quantization))
        before = merge_adapter(tuned, torch.float32).state_dict()
        logits(tuned)
        after = merge_adapter(tuned, torch.float32).state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_fold_leaves_the_tuned_model_as_it_was(llama_folder):
    tuned = with_adapter(load_base(llama_folder, "nf4"))
    before = logits(tuned)
    merge_adapter(tuned, torch.bfloat16)
    assert torch.equal(before, logits(tuned))


def test_every_weight_gets_the_asked_dtype_and_nothing_stays_quantized(llama_folder):
    plain = merge_adapter(with_adapter(load_base(llama_folder, "nf4")), torch.bfloat16)
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.bfloat16}
    assert not hasattr(plain.config, "quantization_config")
    assert all("Linear4bit" not in type(module).__name__ for module in plain.modules())


def test_tied_embeddings_stay_one_tensor(tied_llama_folder, tmp_path):
    plain = reloaded(merge_adapter(with_adapter(load_base(tied_llama_folder, "nf4")), torch.float32), tmp_path)
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
    plain = reloaded(merge_adapter(tuned, torch.float32), tmp_path)
    assert (logits(tuned) - logits(plain)).abs().max() < 1e-4


def test_trained_copies_take_the_place_of_modules_to_save(llama_folder):
    tuned = with_adapter(load_base(llama_folder, "nf4"), modules_to_save=["lm_head"])
    trained = tuned.base_model.model.lm_head.modules_to_save["default"].weight
    assert torch.equal(merge_adapter(tuned, torch.float32).lm_head.weight, trained)


@pytest.mark.parametrize(
    "settings", [{"lora_bias": True, "target_modules": ["c_attn"]}, {"trainable_token_indices": [3]}]
)
def test_parts_that_are_no_weight_update_are_refused(gpt2_folder, settings):
    tuned = with_adapter(load_base(gpt2_folder), **settings)
    with pytest.raises(ArgumentError, match="cannot be folded into a weight matrix"):
        merge_adapter(tuned, torch.float32)
