"""Adapter health beside the dense matrices that PEFT itself makes of the same adapter."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from qlora_cli.errors import IdentityError
from qlora_cli.model.adapter import attach_adapter
from qlora_cli.model.adapter_health import adapter_health, directions_for, effective_rank, singular_values
from qlora_cli.model.base import load_base
from qlora_cli.recipe.schema import LoraSection, ModelSection, QuantizationSection
from qlora_cli.run.adapter_health import (
    AdapterHealth,
    ModuleHealth,
    health_lines,
    read_adapter_health,
    write_adapter_health,
)
from tests.deploy import models
from tests.deploy.models import save_gpt2, save_llama


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("llama"), tie_word_embeddings=False)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return save_gpt2(tmp_path_factory.mktemp("gpt2"))


def adapted(base, *, moved=True, **options):
    """A LoRA adapter on a base, with factors as after training."""
    if not options.keys() & {"target_parameters"}:
        options = {"target_modules": "all-linear", **options}
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **options)
    model = get_peft_model(base, config).eval()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if moved and ("lora_B" in name or "lora_embedding_B" in name):
            torch.nn.init.normal_(parameter, std=0.05)
        if moved and ("lora_embedding_A" in name or "modules_to_save" in name):
            parameter.data += 0.1 * torch.randn_like(parameter)
        if moved and "magnitude" in name:
            parameter.data *= 1 + 0.1 * torch.rand_like(parameter)
    return model


def plain_weights(model):
    """The weights by the names of the plain model, as PEFT's own merge leaves them."""
    names = {
        name.replace("base_model.model.", "").replace(".base_layer", ""): parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if "lora_" not in name and "modules_to_save" not in name
    }
    return {name.replace(".original_module", "").removesuffix(".weight"): tensor for name, tensor in names.items()}


@pytest.mark.parametrize(
    ("base", "options"),
    [
        ("llama", {}),
        ("llama", {"use_rslora": True}),
        ("llama", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 64}}),
        ("llama", {"use_dora": True}),
        ("llama", {"target_modules": ["embed_tokens", "lm_head"]}),
        ("gpt2", {}),
        ("gpt2", {"use_dora": True}),
    ],
    ids=str,
)
def test_norms_are_those_of_the_weights_that_peft_merges(base, options, request):
    folder = request.getfixturevalue(base)
    model = adapted(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), **options)
    before = plain_weights(model)
    health = adapter_health(model)
    model.merge_adapter()
    after = plain_weights(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {module.name for module in health.modules} == changed
    for module in health.modules:
        assert module.has_moved
        assert module.weight_norm == pytest.approx(float(before[module.name].norm()), rel=1e-5)
        assert module.update_norm == pytest.approx(float((after[module.name] - before[module.name]).norm()), rel=1e-4)


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("use_dora", [False, True])
def test_a_quantized_weight_counts_with_its_dequantized_values(llama, quantization, use_dora):
    model = adapted(models.load_base(llama, quantization), use_dora=use_dora)
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    identity = torch.eye(layer.in_features)
    (module,) = (one for one in adapter_health(model).modules if one.name == "model.layers.1.mlp.up_proj")
    with torch.no_grad():  # the layer's own forward pass gives the matrix that it multiplies by
        weight, adapted_weight = layer.base_layer(identity).T, layer(identity).T
    tolerance = 0.02 if quantization == "int8" else 1e-3  # LLM.int8() rounds what it multiplies too
    assert module.weight_norm == pytest.approx(float(weight.norm()), rel=tolerance)
    assert module.update_norm == pytest.approx(float((adapted_weight - weight).norm()), rel=tolerance)


@pytest.mark.parametrize("use_qalora", [False, True])
def test_a_weight_in_integers_counts_with_the_values_it_stands_for(llama, use_qalora):
    model = attach_adapter(
        load_base(ModelSection(base_model=str(llama)), QuantizationSection(method="int", bits=3)),
        LoraSection(r=2, lora_alpha=3, use_qalora=use_qalora),
    ).eval()
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    identity = torch.eye(layer.in_features)
    with torch.no_grad():
        weight, adapted_weight = layer.base_layer(identity).T, layer(identity).T
    (module,) = (one for one in adapter_health(model).modules if one.name == "model.layers.1.mlp.up_proj")
    assert module.weight_norm == pytest.approx(float(weight.norm()), rel=1e-5)
    assert module.update_norm == pytest.approx(float((adapted_weight - weight).norm()), rel=1e-4)


def test_experts_count_together_each_with_its_own_factors():
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=32, hidden_size=64, intermediate_size=64, moe_intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=32, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    model = adapted(
        Qwen3MoeForCausalLM(config), target_parameters=["experts.gate_up_proj", "experts.down_proj"], target_modules=[]
    )
    health = adapter_health(model)
    experts = model.base_model.model.model.layers[0].mlp.experts
    plain = experts.base_layer.base_layer
    before = {name: parameter.detach().clone() for name, parameter in plain.named_parameters()}
    model.merge_adapter()
    after = dict(plain.named_parameters())
    assert {module.kind for module in health.modules} == {"experts"}
    for module in health.modules:
        name = module.name.rpartition(".")[2]
        assert module.update_norm == pytest.approx(float((after[name] - before[name]).detach().norm()), rel=1e-4)
        assert module.weight_norm == pytest.approx(float(before[name].norm()), rel=1e-5)
        ranks = [torch.linalg.matrix_rank((after[name] - before[name])[index]) for index in range(4)]
        assert module.effective_rank <= max(ranks)


def test_a_module_trained_in_full_is_compared_with_the_one_it_replaces(llama):
    model = adapted(AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32), modules_to_save=["model.norm"])
    (norm,) = (module for module in adapter_health(model).modules if module.kind == "whole")
    trained = model.base_model.model.model.norm
    expected = trained.modules_to_save["default"].weight - trained.original_module.weight
    assert (norm.name, norm.r) == ("model.norm", None)
    assert norm.update_norm == pytest.approx(float(expected.detach().norm()))


@pytest.mark.parametrize("use_dora", [False, True])
def test_an_adapter_that_was_not_trained_has_not_moved(llama, use_dora):
    model = adapted(AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32), moved=False, use_dora=use_dora)
    health = adapter_health(model)
    assert not any(module.has_moved for module in health.modules)
    assert "no module has moved" in health_lines(health)[-1]


def test_a_module_that_got_no_gradient_is_named(llama):
    model = adapted(AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32))
    model.base_model.model.model.layers[1].self_attn.k_proj.lora_B["default"].weight.data.zero_()
    lines = health_lines(adapter_health(model))
    assert any("1 of 14 modules never moved: model.layers.1.self_attn.k_proj;" in line for line in lines)


def test_singular_values_are_those_of_the_product():
    torch.manual_seed(0)
    A, B = torch.randn(6, 50), torch.randn(40, 6)
    expected = torch.linalg.svdvals(B.double() @ A.double())[:6]
    assert torch.allclose(singular_values(A, B), expected, rtol=1e-10)


def test_a_rank_above_the_matrix_has_no_more_directions_than_the_matrix():
    torch.manual_seed(0)
    values = singular_values(torch.randn(16, 8), torch.randn(10, 16))
    assert int((values > 1e-9).sum()) == 8


@pytest.mark.parametrize(
    ("values", "rank", "directions"),
    [([1.0, 1, 1, 1], 4.0, 4), ([1.0, 0, 0, 0], 1.0, 1), ([0.0, 0], 0.0, 0), ([10.0, 1, 1], 1.7613, 1)],
)  # exp(5/6 ln 6/5 + 2 (1/12) ln 12) = 1.7613
def test_effective_rank_is_the_exponential_of_the_entropy(values, rank, directions):
    assert effective_rank(torch.tensor(values)) == pytest.approx(rank, abs=1e-4)
    assert directions_for(torch.tensor(values), 0.9) == directions


def health(*, relative=0.01, effective=6.0, rank_90=5, r=8, has_moved=True, starts_at_zero=True):
    modules = [
        ModuleHealth(f"layers.{index}.q_proj", "lora", relative, 1.0, has_moved, r, effective, rank_90)
        for index in range(4)
    ]
    return AdapterHealth("LoRA", tuple(modules), starts_at_zero)


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"effective": 7.9}, "a larger r may learn more, lora.r=16"),
        ({"effective": 1.3, "rank_90": 1}, "a smaller adapter would hold nearly the same, lora.r=1"),
        ({"relative": 0.8}, "4 of 4 modules changed by more than 50% of the weight"),
        ({"starts_at_zero": False}, "what it started with included"),
    ],
)
def test_figures_lead_to_advice(figures, words):
    assert any(words in line for line in health_lines(health(**figures)))


def test_an_adapter_with_nothing_to_say_against_it_gets_no_advice():
    assert all("lora." not in line for line in health_lines(health()))


def test_figures_come_back_as_they_were_written(tmp_path, llama):
    path = tmp_path / "adapter_health.json"
    assert read_adapter_health(path) is None
    model = adapted(AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32), use_dora=True)
    written = adapter_health(model)
    write_adapter_health(path, written)
    assert read_adapter_health(path) == written
    assert json.loads(path.read_text("utf-8"))["modules"][0]["relative_norm"] == written.modules[0].relative_norm


@pytest.mark.parametrize("text", ["{}", "[]", '{"format": 2}', '{"format": 1, "modules": [3]}', "not json"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "adapter_health.json"
    path.write_text(text, "utf-8")
    with pytest.raises(IdentityError, match="adapter_health"):
        read_adapter_health(path)
