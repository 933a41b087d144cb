"""A QA-LoRA update folded into a base in integers: only offsets change, and the model is the one that was trained."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.gptq import GPTQLoraLinear
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from qlora_cli.deploy.fold_plan import fold_plan, plain_skeleton
from qlora_cli.deploy.merged_model import write_model
from qlora_cli.errors import ArgumentError
from qlora_cli.model.integer.linear import IntegerLinear
from qlora_cli.model.tuned import TunedSource
from qlora_cli.recipe.schema import ModelSection
from tests.deploy.integers import save_integers
from tests.deploy.models import VOCABULARY, save_tokenizer

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
}
CLASSES = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen3": (Qwen3ForCausalLM, Qwen3Config)}
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.arange(1, 60)[None]


@pytest.fixture(scope="module", params=CLASSES)
def base(request, tmp_path_factory):
    """A bfloat16 base."""
    folder = tmp_path_factory.mktemp(request.param)
    model_class, config_class = CLASSES[request.param]
    torch.manual_seed(0)
    model_class(config_class(**SHAPE, head_dim=32)).bfloat16().save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def load_integers(base, folder, bits, group_size) -> PreTrainedModel:
    """The model of a folder in integers, layer by layer."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tensors = load_file(folder / "model.safetensors")
    for key in [key for key in tensors if key.endswith(".codes")]:
        name = key.removesuffix(".codes")
        parent, _, child = name.rpartition(".")
        plain = model.get_submodule(name)
        layer = IntegerLinear(plain.in_features, plain.out_features, bits, group_size)
        for part in ("codes", "scales", "offsets"):
            setattr(layer, part, tensors[f"{name}.{part}"])
        setattr(model.get_submodule(parent), child, layer)
    return model.eval()


def with_adapter(model, **settings):
    """A LoRA whose B is not zero."""
    torch.manual_seed(2)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=LAYERS, task_type="CAUSAL_LM", **settings)
    config._register_custom_module({IntegerLinear: GPTQLoraLinear})
    tuned = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return tuned.eval()


def merge(tuned, folder, out, *, keeps_codes, dtype=None):
    out.mkdir()
    source = TunedSource(out, ModelSection(base_model=str(folder)))
    plan = fold_plan(tuned, keeps_codes=keeps_codes)
    return write_model(out, source, plain_skeleton(tuned), plan, dtype=dtype)


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (3, 64), (2, 128)])
def test_only_offsets_change_and_no_logit_moves_by_1e_4(base, bits, group_size, tmp_path):
    folder = save_integers(base, tmp_path / "base", bits=bits, group_size=group_size)
    model = load_integers(base, folder, bits, group_size)
    of_base = logits(model)
    tuned = with_adapter(model, use_qalora=True, qalora_group_size=group_size)
    weights = merge(tuned, folder, tmp_path / "out", keeps_codes=True)
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "out"))
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        if key.endswith(".offsets"):
            assert after[key].dtype == torch.float32
            assert not torch.equal(after[key], tensor.float())
        else:
            assert after[key].dtype == tensor.dtype
            assert torch.equal(after[key], tensor)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"] == json.loads((folder / "config.json").read_text())["quantization_config"]
    assert (weights.dtype, weights.num_parameters) == (
        f"int{bits}",
        sum(p.numel() for p in plain_skeleton(tuned).parameters()),
    )
    trained, merged = logits(tuned), logits(load_integers(base, tmp_path / "out", bits, group_size))
    assert (trained - merged).abs().max() < 1e-4 < 0.1 < (trained - of_base).abs().max()


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
@pytest.mark.parametrize("settings", [{"use_qalora": True, "qalora_group_size": 32}, {}], ids=["qa-lora", "lora"])
def test_onto_plain_weights_either_update_is_added_to_the_dequantized_values(base, settings, tmp_path):
    folder = save_integers(base, tmp_path / "base", bits=4, group_size=32)
    tuned = with_adapter(load_integers(base, folder, 4, 32), **settings)
    merge(tuned, folder, tmp_path / "out", keeps_codes=False, dtype=torch.float32)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert (logits(tuned) - logits(plain)).abs().max() < 1e-4


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
def test_a_layer_that_is_not_adapted_gets_float32_offsets_too(base, tmp_path):
    folder = save_integers(base, tmp_path / "base", bits=4, group_size=32)
    tuned = with_adapter(
        load_integers(base, folder, 4, 32), use_qalora=True, qalora_group_size=32, exclude_modules=["o_proj"]
    )
    merge(tuned, folder, tmp_path / "out", keeps_codes=True)
    key = "model.layers.0.self_attn.o_proj.offsets"
    before, after = (load_file(place / "model.safetensors")[key] for place in (folder, tmp_path / "out"))
    assert after.dtype == torch.float32
    assert torch.equal(after, before.float())


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
def test_an_update_of_several_groups_goes_into_offsets_and_one_of_parts_of_groups_onto_plain_weights(base, tmp_path):
    """PEFT pools 16 inputs where nothing else is said, whatever the groups of the base are."""
    folder = save_integers(base, tmp_path / "base", bits=4, group_size=32)
    wide = with_adapter(load_integers(base, folder, 4, 32), use_qalora=True, qalora_group_size=64)
    merge(wide, folder, tmp_path / "wide", keeps_codes=True)
    assert (logits(wide) - logits(load_integers(base, tmp_path / "wide", 4, 32))).abs().max() < 1e-4
    narrow = with_adapter(load_integers(base, folder, 4, 32), use_qalora=True, qalora_group_size=16)
    with pytest.raises(ArgumentError, match="to each 16 weights, and an offset of the base is for 32") as caught:
        fold_plan(narrow, keeps_codes=True)
    assert "--dtype bfloat16" in caught.value.problems[0].hint
    merge(narrow, folder, tmp_path / "narrow", keeps_codes=False, dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "narrow").eval()
    assert (logits(narrow) - logits(plain)).abs().max() < 1e-4


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
def test_an_update_of_single_columns_does_not_go_into_offsets(base, tmp_path):
    folder = save_integers(base, tmp_path / "base", bits=4, group_size=32)
    with pytest.raises(ArgumentError, match="cannot be folded"):
        fold_plan(with_adapter(load_integers(base, folder, 4, 32)), keeps_codes=True)
