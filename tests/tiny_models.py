"""Small real things that many tests stand on: a random Llama with a byte-level tokenizer, and chat data.

A plugin of pytest, which `tests/conftest.py` loads where tests run.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qlora_cli.model.tiny import TinyOptions, make_tiny_base

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer(*special_tokens: str, eos_token: str = "<|im_end|>") -> PreTrainedTokenizerFast:
    """A tokenizer with one token a byte and the special tokens named, ChatML as its template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos_token, pad_token="<|pad|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *special_tokens]})
    tokenizer.chat_template = CHATML
    return tokenizer


def tiny_llama(vocabulary: int, *, seed: int = 0) -> LlamaForCausalLM:
    """Two layers of random weights; dimensions are multiples of 64, the block of NF4."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `from_pretrained` loads: tiny random Llama in float32, byte-level tokenizer, ChatML."""
    folder = tmp_path_factory.mktemp("base") / "tiny-base"
    tokenizer = byte_tokenizer()
    model = tiny_llama(len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def trained_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base after 100 steps on the demo's tickets (4 s): its activations have the outliers that training makes.

    Random weights have none, and what depends on outliers, such as LLM.int8(), goes unseen on them.
    """
    folder = tmp_path_factory.mktemp("trained") / "trained-base"
    corpus = Path(__file__).parents[1] / "recipes" / "data" / "tickets_train.jsonl"
    sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 512}
    make_tiny_base(folder, TinyOptions((corpus,), **sizes, steps=100, batch_size=4, window_length=64))
    return folder


@pytest.fixture(scope="session")
def chat_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 short sums as a JSONL file in alpaca format."""
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    rows = ({"instruction": f"add {n} and {n + 1}", "output": str(2 * n + 1)} for n in range(48))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
