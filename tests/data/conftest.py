"""A byte-level tokenizer for any chat template, made on the spot."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CONTROL_TOKEN = re.compile(r"<\|?[a-zA-Z_/|]+\|?>|<\uff5c[^\uff5c]+\uff5c>|\[/?[A-Z_]+\]|\[gMASK\]")
CORPUS = ["The capital of France is Paris.", "def add(a, b):\n    return a + b", "assistant user system\n\n"] * 20


def make_tokenizer(template: str | None = None, *, eos: str = "</s>", extra: tuple[str, ...] = ()):
    """Byte-level BPE with every control token that the template writes added as a special token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet))
    found = sorted(set(CONTROL_TOKEN.findall(template or "")))
    backend.add_special_tokens([AddedToken(token, special=True) for token in (*found, *extra)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token=eos, pad_token="<pad>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer_for() -> Callable[..., PreTrainedTokenizerFast]:
    """The function `make_tokenizer`."""
    return make_tokenizer
