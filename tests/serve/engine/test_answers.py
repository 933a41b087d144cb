"""Every answer of a mixed load is the one that its model gives alone, whatever the base and the adapters are."""

import contextlib

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

from qlora_cli.serve.engine.loading import load_engine
from tests.deploy.models import VOCABULARY, save_gpt2, save_llama, save_tokenizer
from tests.model.bases import MULTIMODAL, TEXT_ONLY, save_toy
from tests.serve.engine.asking import Alone, assert_as_alone, find, save_adapter

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 3,
}


def save_model(folder, model):
    torch.manual_seed(0)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


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


@contextlib.contextmanager
def serving(folders, limits=None):
    loaded = load_engine([(name, find(folder)) for name, folder in folders.items()], limits)
    try:
        yield loaded
    finally:
        loaded.engine.close(0)


def mixed_load(names):
    """Twelve questions, greedy and sampled, for one name after the other."""
    sampled = {"temperature": 0.9, "top_p": 0.9}
    return [
        (names[number % len(names)], number, sampled | {"seed": number} if number % 3 == 2 else {})
        for number in range(12)
    ]


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
