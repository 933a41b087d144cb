"""Tokens and positions that a base looks up must be in its tables; computed positions have no end."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    GPT2Config,
    GPTBigCodeConfig,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    OPTConfig,
    PhiConfig,
)

from qlora_cli.errors import RecipeError
from qlora_cli.model.embedding_limits import check_length, check_tokens, has_position_table, num_positions
from tests.plan.bases import config_of
from tests.tiny_models import byte_tokenizer

POSITIONS = 24
GPT2_SHAPE = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 64, "n_positions": POSITIONS}
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": POSITIONS,
}
LOOKED_UP = {
    "gpt2": GPT2Config(**GPT2_SHAPE),
    "gpt_bigcode": GPTBigCodeConfig(**GPT2_SHAPE),
    "gptj": GPTJConfig(**GPT2_SHAPE, rotary_dim=8),
    "gpt_neo": GPTNeoConfig(
        **{**SHAPE, "num_layers": 1, "num_heads": 2, "attention_types": [[["global"], 1]], "window_size": 8}
    ),
    "opt": OPTConfig(**SHAPE, ffn_dim=32, word_embed_proj_dim=32),
}
COMPUTED = {
    "gpt_neox": GPTNeoXConfig(**SHAPE, intermediate_size=64),
    "falcon": FalconConfig(**SHAPE),
    "phi": PhiConfig(**SHAPE, intermediate_size=64),
    **{name: config_of(name) for name in ("llama", "qwen3", "gemma2", "gemma3", "mistral", "phi3")},
}


def model_of(config):
    return AutoModelForCausalLM.from_config(config).eval()


def run(model, num_tokens):
    with torch.no_grad():
        model(input_ids=torch.ones(1, num_tokens, dtype=torch.int64))


@pytest.mark.parametrize("name", [*LOOKED_UP, *COMPUTED])
def test_a_table_is_there_where_positions_beyond_it_are_an_error(name):
    config = {**LOOKED_UP, **COMPUTED}[name]
    config.max_position_embeddings = POSITIONS
    model = model_of(config)
    run(model, POSITIONS)
    check_length(model, name, POSITIONS)
    if name in COMPUTED:
        run(model, POSITIONS + 1)
        check_length(model, name, POSITIONS + 1)
        return
    with pytest.raises((IndexError, RuntimeError)):
        run(model, POSITIONS + 1)
    with pytest.raises(RecipeError, match=f"'{name}' has 24 positions, and the longest row has 25 tokens") as caught:
        check_length(model, name, POSITIONS + 1)
    assert caught.value.problems[0].hint == "--set data.max_length=24"


def test_a_base_that_knows_no_positions_takes_any_row():
    model = model_of(BloomConfig(hidden_size=32, n_layer=1, n_head=2, vocab_size=64))
    assert num_positions(model.config) is None
    check_length(model, "bloom", 10**6)


@pytest.mark.parametrize("targets", ["all-linear", ["c_attn", "wpe", "wte"]])
def test_an_adapter_hides_no_table(targets):
    model = get_peft_model(model_of(LOOKED_UP["gpt2"]), LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM"))
    assert has_position_table(model)
    with pytest.raises(RecipeError, match="embeddings for 64 tokens"):
        check_tokens(model, byte_tokenizer(), "gpt2", lambda: 64)


def test_a_tokenizer_may_know_more_than_is_met():
    tokenizer, model = byte_tokenizer(), model_of(LOOKED_UP["gpt2"])
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(7)
    assert len(tokenizer) > 64
    check_tokens(model, tokenizer, "gpt2", lambda: 63)
    with pytest.raises(RecipeError, match=r"embeddings for 64 tokens, and its tokenizer makes token 64, ") as caught:
        check_tokens(model, tokenizer, "gpt2", lambda: 64)
    assert "have no embeddings" in caught.value.problems[0].hint


def test_a_padding_token_without_an_embedding_is_refused():
    tokenizer, model = byte_tokenizer(), model_of(LOOKED_UP["gpt2"])
    assert tokenizer.pad_token_id > 64
    with pytest.raises(RecipeError, match=f"makes token {tokenizer.pad_token_id}, "):
        check_tokens(model, tokenizer, "gpt2", lambda: 0)


def test_rows_are_not_read_where_there_is_no_doubt():
    model = model_of(GPT2Config(**{**GPT2_SHAPE, "vocab_size": 512}))
    check_tokens(model, byte_tokenizer(), "gpt2", lambda: pytest.fail("the rows were read"))
