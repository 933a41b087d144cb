"""Rows of many adapters in one pass through stacked factors get what PEFT gives each of them alone."""

from __future__ import annotations

import random

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from qlora_cli.model.abilities import layers_of
from qlora_cli.model.stacked_lora import StackedLora, group
from tests.deploy.models import SIZES, VOCABULARY

BASES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "gemma, whose embeddings are multiplied": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**SIZES, layer_types=["full_attention", "full_attention"])
    ),
}

ADAPTERS = {
    "all": {"r": 8, "lora_alpha": 16},
    "few": {"r": 2, "lora_alpha": 3, "target_modules": ["v_proj"]},
    "tokens": {"r": 5, "lora_alpha": 7, "target_modules": ["embed_tokens", "down_proj"]},
    "rows of tokens alone": {"r": 3, "lora_alpha": 9, "target_modules": ["embed_tokens"]},
    "biased": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "lora_bias": True},
    "rank stabilized": {"r": 16, "lora_alpha": 8, "use_rslora": True, "rank_pattern": {"o_proj": 3}},
}


def with_adapters(base, adapters, dtypes=()) -> PeftModel:
    """All of them on one base, none of them zero."""
    torch.manual_seed(0)
    model = base
    for name, settings in adapters.items():
        config = LoraConfig(**{"target_modules": "all-linear", "task_type": "CAUSAL_LM"} | settings)
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
        else:
            model = get_peft_model(model, config, adapter_name=name)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data.normal_(std=0.1)
            parameter.data = parameter.to(next((dtype for name, dtype in dtypes if f".{name}" in key), parameter.dtype))
    return model.eval()


@torch.no_grad()
def each_alone(model, ids, rows):
    """Logits of each row with its adapter as PEFT's active one."""
    logits = []
    for row, name in zip(ids, rows, strict=True):
        if name is None:
            with model.disable_adapter():
                logits.append(model(input_ids=row[None]).logits[0])
        else:
            model.set_adapter(name)
            logits.append(model(input_ids=row[None]).logits[0])
    return torch.stack(logits)


@torch.no_grad()
def together(model, stacked, ids, rows):
    with model.disable_adapter(), stacked.computing(rows):
        return model(input_ids=ids).logits


def stack(model, adapters):
    return StackedLora(layers_of(model, adapters), adapters)


@pytest.mark.parametrize("kind", BASES)
def test_rows_of_any_adapters_get_what_each_gives_alone(kind):
    model = with_adapters(BASES[kind](), ADAPTERS)
    draw, cases = random.Random(0), []
    for _ in range(20):
        names = draw.sample([*ADAPTERS, None], k=draw.randint(1, 7))
        rows = [draw.choice(names) for _ in range(draw.randint(1, 9))]
        ids = torch.randint(0, VOCABULARY, (len(rows), draw.randint(1, 6)))
        cases.append((rows, ids, each_alone(model, ids, rows)))
    stacked = stack(model, {*ADAPTERS})
    for rows, ids, expected in cases:
        torch.testing.assert_close(together(model, stacked, ids, rows), expected, rtol=0, atol=2e-5)


def test_layers_of_gpt2_which_lie_the_other_way_round():
    adapters = {"a": {"target_modules": ["c_attn"]}, "b": {"r": 4, "target_modules": ["wte", "c_fc"]}}
    model = with_adapters(
        GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=64, n_layer=2, n_head=2)), adapters
    )
    ids, rows = torch.randint(0, VOCABULARY, (4, 5)), ["a", None, "b", "a"]
    expected = each_alone(model, ids, rows)
    assert not torch.equal(expected[0], expected[1])
    torch.testing.assert_close(together(model, stack(model, {"a", "b"}), ids, rows), expected, rtol=0, atol=2e-5)


def test_an_adapter_of_another_dtype_is_computed_in_its_own():
    model = with_adapters(BASES["llama"](), {"fp32": {}, "bf16": {}, "other": {}}, dtypes=[("bf16", torch.bfloat16)])
    ids, rows = torch.randint(0, VOCABULARY, (5, 4)), ["bf16", "fp32", None, "other", "bf16"]
    expected = each_alone(model, ids, rows)
    found = together(model, stack(model, {"fp32", "bf16", "other"}), ids, rows)
    torch.testing.assert_close(found[[1, 2, 3]], expected[[1, 2, 3]], rtol=0, atol=2e-5)
    torch.testing.assert_close(found[[0, 4]], expected[[0, 4]], rtol=0, atol=5e-2)  # bfloat16 rounds at each step


def test_adapters_that_are_not_stacked_and_passes_outside_are_as_before():
    model = with_adapters(BASES["llama"](), {"a": {}, "b": {}, "apart": {"use_dora": True}})
    ids = torch.randint(0, VOCABULARY, (3, 4))
    before = each_alone(model, ids, ["a", "apart", None])
    stacked = stack(model, {"a", "b"})
    assert torch.equal(each_alone(model, ids, ["a", "apart", None]), before)
    with pytest.raises(RuntimeError, match="stop here"), stacked.computing(["a", "b", None]):
        raise RuntimeError("stop here")
    assert torch.equal(each_alone(model, ids, ["a", "apart", None]), before)


def test_nothing_is_held_twice():
    adapters = {str(number): {"r": 8} for number in range(3)}
    model = with_adapters(BASES["llama"](), adapters)
    names = [key for key, _ in model.named_parameters() if "lora_" in key]
    num_bytes = sum(model.get_parameter(key).nbytes for key in names)
    stacked = stack(model, {*adapters})
    storages = {
        model.get_parameter(key).untyped_storage().data_ptr(): model.get_parameter(key).untyped_storage()
        for key in names
    }
    assert sum(storage.nbytes() for storage in storages.values()) == num_bytes
    ids, rows = torch.randint(0, VOCABULARY, (3, 4)), ["2", "0", "1"]
    with torch.no_grad():
        for key in names:
            model.get_parameter(key).mul_(2)
    torch.testing.assert_close(
        together(model, stacked, ids, rows), each_alone(model, ids, rows), rtol=0, atol=1e-4
    )  # the stacks have changed with them


def test_groups_are_rows_of_one_adapter():
    groups = group(["b", None, "a", "b", "elsewhere", "b"], ("a", "never", "b"), torch.device("cpu"))
    assert groups.members.tolist() == [0, 2]
    assert groups.rows.tolist() == [[2, 2, 2], [0, 3, 5]]
    assert groups.adapted.tolist() == [0, 2, 3, 5]
    assert groups.rows.flatten()[groups.places].tolist() == groups.adapted.tolist()
    assert groups.only is None
    assert group(["b", "b"], ("a", "b"), torch.device("cpu")).only == 1
    assert group(["b", None], ("a", "b"), torch.device("cpu")).only is None
    assert group([None, "c"], ("a", "b"), torch.device("cpu")) is None
