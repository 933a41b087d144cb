"""Adapters as plain PEFT saves them, and one that this project trained, against what vLLM 0.32 takes."""

import json

import pytest
from peft import AdaLoraConfig, LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from qlora_cli.model.vllm_limits import MAX_LORA_RANKS, vllm_rank, vllm_refusals
from tests.deploy.models import load_base, save_llama, with_adapter


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("base"), tie_word_embeddings=False)


@pytest.fixture
def adapter(base_folder, tmp_path):
    """Saves an adapter made by plain PEFT with the settings given."""

    def save(config=None, **settings):
        base = load_base(base_folder)
        tuned = with_adapter(base, **settings) if config is None else get_peft_model(base, config)
        tuned.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    return save


TAKEN = [
    {},
    {"r": 12, "use_rslora": True},
    {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"q_proj": 5}},
    {"init_lora_weights": "gaussian"},
    {"init_lora_weights": "orthogonal"},
]


@pytest.mark.parametrize("settings", TAKEN, ids=str)
def test_what_vllm_computes_is_not_refused(adapter, settings):
    assert vllm_refusals(adapter(**settings)) == []


REFUSED = [
    ({"use_dora": True}, "DoRA"),
    ({"lora_bias": True}, "lora_bias"),
    ({"bias": "lora_only"}, "bias: lora_only"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights: pissa"),
    ({"init_lora_weights": "olora"}, "init_lora_weights: olora"),
    ({"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, "modules_to_save: lm_head"),
    ({"trainable_token_indices": [5], "target_modules": ["q_proj"]}, "trainable_token_indices"),
    ({"r": 513, "target_modules": ["q_proj"]}, "rank is 513"),
    ({"rank_pattern": {"q_proj": 600}, "target_modules": ["q_proj"]}, "rank is 600"),
]


@pytest.mark.parametrize(("settings", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_vllm_does_not_compute_is_refused_once_and_leads_to_a_merge(adapter, settings, words):
    folder = adapter(**settings)
    [refusal] = vllm_refusals(folder)
    assert words in refusal.text
    assert f"`qlora merge {folder} --out FOLDER`" in refusal.way_on


def test_another_method_is_refused_by_its_name(adapter):
    adalora = AdaLoraConfig(total_step=10, target_modules=["q_proj"], task_type="CAUSAL_LM")
    [refusal] = vllm_refusals(adapter(adalora))
    assert "AdaLoRA" in refusal.text
    assert "qlora merge" in refusal.way_on


def test_what_cannot_be_merged_is_not_sent_to_a_merge(adapter):
    [refusal] = vllm_refusals(adapter(PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")))
    assert "prompt tuning" in refusal.text
    assert "qlora chat" in refusal.way_on


def test_layers_that_are_copies_are_not_sent_to_a_merge(adapter):
    config = LoraConfig(target_modules=["q_proj"], layer_replication=[(0, 2), (0, 2)], task_type="CAUSAL_LM")
    [refusal] = vllm_refusals(adapter(config))
    assert "layer_replication" in refusal.text
    assert "qlora chat" in refusal.way_on


def test_rows_of_embeddings_that_vllm_would_pass_over_are_refused(adapter):
    folder = adapter(target_modules=["q_proj", "embed_tokens"])
    path = folder / "adapter_model.safetensors"
    tensors = {name: value for name, value in load_file(path).items() if "base_layer" not in name}
    save_file(tensors, path, metadata={"format": "pt"})
    assert vllm_refusals(folder) == []
    name = "base_model.model.model.embed_tokens.base_layer.weight"
    rows = load_base_rows(folder)
    save_file(tensors | {name: rows}, path, metadata={"format": "pt"})
    [refusal] = vllm_refusals(folder)
    assert name in refusal.text


def load_base_rows(folder):
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    return load_base(base).get_input_embeddings().weight.detach().clone()


@pytest.mark.parametrize(("ranks", "expected"), [((4,), 8), ((12, 8), 16), ((16,), 16), ((1,), 1), ((200, 65), 256)])
def test_the_rank_of_the_engine_is_the_next_that_holds_all(tmp_path, ranks, expected):
    folders = []
    for rank in ranks:
        folders.append(tmp_path / str(rank))
        folders[-1].mkdir()
        (folders[-1] / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank}))
    assert vllm_rank(folders) == expected
    assert expected in MAX_LORA_RANKS
