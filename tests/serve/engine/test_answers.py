"""Every answer of a mixed load is the one that its model gives alone, whatever the base and the adapters are."""

import json
from functools import partial

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.deploy.integers import save_integers
from tests.deploy.models import SIZES, save_gpt2, save_llama
from tests.model.bases import MULTIMODAL, TEXT_ONLY, save_toy
from tests.model.foreign_bases import w4a16_base
from tests.serve.engine.asking import Alone, assert_as_alone, mixed_load, save_adapter, save_model, serving

DENSE = {
    "llama": lambda folder: save_llama(folder, tie_word_embeddings=False),
    "gpt2": save_gpt2,
    "qwen3": lambda folder: save_model(folder, Qwen3ForCausalLM(Qwen3Config(**SIZES))),
    "gemma3, a window of 12": lambda folder: save_model(
        folder,
        Gemma3ForCausalLM(
            Gemma3TextConfig(**SIZES, sliding_window=12, layer_types=["sliding_attention", "full_attention"])
        ),
    ),
    "mistral, a window of 12": lambda folder: save_model(
        folder, MistralForCausalLM(MistralConfig(**SIZES, sliding_window=12))
    ),
}


@pytest.mark.parametrize("kind", DENSE)
def test_adapters_of_a_dense_base_answer_in_one_batch_as_alone(tmp_path, kind):
    base = DENSE[kind](tmp_path / "base")
    folders = {
        "all": save_adapter(tmp_path / "all", base, 1),
        "few": save_adapter(tmp_path / "few", base, 2, target_modules=["c_attn"] if kind == "gpt2" else ["q_proj"]),
    }
    with serving(folders) as loaded:
        assert loaded.num_together == 3
        assert_as_alone(loaded, Alone(folders), mixed_load(loaded.engine.names))


@pytest.mark.parametrize("make", [partial(save_integers, bits=3, group_size=64), w4a16_base], ids=["int", "w4a16"])
def test_adapters_of_a_base_in_integers_answer_in_one_batch_as_alone(tmp_path, make):
    plain = save_llama(tmp_path / "plain", tie_word_embeddings=False)
    make(plain, tmp_path / "base")
    folders = {
        "all": save_adapter(tmp_path / "all", plain, 1),
        "few": save_adapter(tmp_path / "few", plain, 2, target_modules=["down_proj"]),
    }
    for folder in folders.values():
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = str(tmp_path / "base")
        (folder / "adapter_config.json").write_text(json.dumps(config))
    with serving(folders) as loaded:
        assert loaded.num_together == 3
        assert_as_alone(loaded, Alone(folders), mixed_load(loaded.engine.names))


@pytest.mark.every(4)
@pytest.mark.parametrize("kind", [*TEXT_ONLY, *MULTIMODAL])
def test_mixtures_of_experts_and_hybrids_answer_as_alone(tmp_path, kind):
    base = save_toy(kind, tmp_path / "base", dtype=torch.float32)
    folders = {
        "one": save_adapter(
            tmp_path / "one", base, 1, target_modules=r".*(model|language_model)\.layers\.\d+\.self_attn\.[qo]_.*proj"
        ),
        "two": save_adapter(
            tmp_path / "two", base, 2, target_modules=r".*(model|language_model)\.layers\.1\.self_attn\.o_proj"
        ),
    }
    with serving(folders) as loaded:
        assert_as_alone(loaded, Alone(folders), mixed_load(loaded.engine.names))
