"""The proof passes where documents are apart and fails where they are not."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel

from qlora_cli.data.collator import Collator
from qlora_cli.errors import NumericError, RecipeError
from qlora_cli.model.adapter import attach_adapter
from qlora_cli.model.base import load_base
from qlora_cli.recipe.schema import LoraSection, ModelSection, QuantizationSection
from qlora_cli.train.preflight import attention
from qlora_cli.train.preflight.attention import check_causal_attention, check_packed_isolation
from tests.model.packed_bases import packed_base
from tests.plan.bases import config_of


def tuned(folder, attention="sdpa", quantization=None, dtype="auto"):
    model = ModelSection(base_model=str(folder), attn_implementation=attention, dtype=dtype)
    return attach_adapter(load_base(model, quantization), LoraSection(r=4, lora_dropout=0))


class LeakyCollator(Collator):
    """Numbers positions through the whole row, as a packer without document bounds does."""

    def __call__(self, rows):
        batch = super().__call__(rows)
        length = batch["input_ids"].shape[1]
        return {**batch, "position_ids": torch.arange(length)[None]}


QUANTIZATIONS = [None, *(QuantizationSection(quant_type=kind) for kind in ("nf4", "fp4", "int8"))]


def quantized_name(quantization):
    return quantization.quant_type if quantization else "none"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", QUANTIZATIONS, ids=quantized_name)
def test_trained_weights_pass_however_they_are_stored(trained_base, quantization, dtype):
    model = tuned(trained_base, quantization=quantization, dtype=dtype)
    check_causal_attention(model, Collator(0))
    assert check_packed_isolation(model, Collator(0)).max_change == 0.0


@pytest.mark.parametrize("quantization", QUANTIZATIONS, ids=quantized_name)
def test_a_real_leak_between_documents_is_found_on_trained_weights(trained_base, quantization):
    with pytest.raises(NumericError, match="see each other"):
        check_packed_isolation(tuned(trained_base, quantization=quantization), LeakyCollator(0))


@pytest.mark.parametrize("quantization", QUANTIZATIONS, ids=quantized_name)
def test_trained_weights_that_see_what_follows_are_refused(trained_base, quantization):
    model = tuned(trained_base, "eager", quantization)
    for layer in model.get_base_model().model.layers:
        layer.register_forward_pre_hook(see_everything, with_kwargs=True)
    with pytest.raises(RecipeError, match="not a causal language model"):
        check_causal_attention(model, Collator(0))


def see_everything(layer, args, kwargs):
    """A mask that hides nothing, as BERT's."""
    return args, {**kwargs, "attention_mask": torch.zeros_like(kwargs["attention_mask"])}


@pytest.mark.parametrize("prove", [check_causal_attention, check_packed_isolation])
def test_outlier_columns_of_int8_would_fail_the_proof(trained_base, monkeypatch, prove):
    """Else the tests above would say nothing of them."""
    model = tuned(trained_base, quantization=QuantizationSection(quant_type="int8"))
    monkeypatch.setattr(attention, "no_outlier_columns", nullcontext)
    with pytest.raises((NumericError, RecipeError)):
        prove(model, Collator(0))


@pytest.mark.parametrize("quantization", QUANTIZATIONS, ids=quantized_name)
def test_documents_that_share_a_recurrent_state_are_found_out(tmp_path, quantization):
    config = config_of("qwen3_5")
    config.layer_types = ["linear_attention", "full_attention"]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = tuned(tmp_path, quantization=quantization)
    check_causal_attention(model, Collator(0))
    with pytest.raises(NumericError, match="see each other"):
        check_packed_isolation(model, Collator(0))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_documents_that_are_apart_do_not_move_each_other_by_a_bit(tiny_base, attention):
    model = tuned(tiny_base, attention, QuantizationSection()).train()
    assert check_packed_isolation(model, Collator(0)).max_change == 0.0
    assert model.training


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_documents_that_see_each_other_are_found_out(tiny_base, attention, dtype):
    model = tuned(tiny_base, attention, dtype=dtype)
    with pytest.raises(NumericError, match="see each other") as caught:
        check_packed_isolation(model, LeakyCollator(0))
    assert caught.value.problems[0].hint == "--set data.packing=false"
    assert model.config._attn_implementation == attention


def test_another_attention_is_offered_where_it_keeps_documents_apart(tiny_base):
    model = tuned(tiny_base, "eager")
    for layer in model.get_base_model().model.layers:
        layer.register_forward_pre_hook(see_what_came_before_in_eager, with_kwargs=True)
    with pytest.raises(NumericError, match="see each other") as caught:
        check_packed_isolation(model, Collator(0))
    assert caught.value.problems[0].hint == "--set data.packing=false, or --set model.attn_implementation=sdpa"


def see_what_came_before_in_eager(layer, args, kwargs):
    """A causal mask without bounds of documents, unless attention is torch's own."""
    if layer.self_attn.config._attn_implementation != "eager":
        return args, kwargs
    length = args[0].shape[1]
    mask = torch.full((1, 1, length, length), torch.finfo(args[0].dtype).min).triu(1)
    return args, {**kwargs, "attention_mask": mask}


def test_a_base_that_looks_past_positions_and_has_one_attention_is_offered_no_other(tmp_path):
    packed, _ = packed_base("mxfp4", tmp_path)
    section = ModelSection(base_model=str(packed), dequantize=True, attn_implementation="eager")
    model = attach_adapter(load_base(section, QuantizationSection()), LoraSection(r=4, lora_dropout=0))
    with pytest.raises(NumericError, match="see each other") as caught:
        check_packed_isolation(model, Collator(0))
    assert caught.value.problems[0].hint == "--set data.packing=false"


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe"])
def test_the_roundings_of_a_mixture_in_16_bit_are_no_leak(tmp_path, architecture):
    AutoModelForCausalLM.from_config(config_of(architecture)).save_pretrained(tmp_path)
    model = tuned(tmp_path, dtype="bfloat16")
    check_causal_attention(model, Collator(0))
    check_packed_isolation(model, Collator(0))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_causal_base_is_one(tiny_base, attention):
    model = tuned(tiny_base, attention).train()
    check_causal_attention(model, Collator(0))
    assert model.training


@pytest.mark.parametrize("quantization", QUANTIZATIONS, ids=quantized_name)
def test_a_base_that_sees_what_follows_is_refused(tmp_path, quantization):
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertLMHeadModel(BertConfig(vocab_size=64, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="BertLMHeadModel is not a causal language model") as caught:
        check_causal_attention(tuned(tmp_path, quantization=quantization), Collator(0))
    assert caught.value.exit_code == 2


def test_a_base_with_broken_weights_is_not_blamed_on_packing(tiny_base):
    model = tuned(tiny_base)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(NumericError, match="not finite before the first step"):
        check_packed_isolation(model, Collator(0))
