"""Spans of characters become spans of tokens, and a prompt's tokens never depend on the answer."""

from __future__ import annotations

import pytest

from qlora_cli.data.encoding import Encoder
from qlora_cli.errors import DataError


@pytest.fixture(scope="module")
def tokenizer(tokenizer_for):
    return tokenizer_for(extra=("<|end|>",))


def spans_as_text(tokenizer, text, spans):
    [encoded] = Encoder(tokenizer).encode([text], [spans])
    assert tokenizer.decode(encoded.input_ids) == text
    return [tokenizer.decode(encoded.input_ids[start:end]) for start, end in encoded.spans]


def test_spans_cover_the_same_characters_in_tokens(tokenizer):
    text = "Hi<|end|>Grüße 🙂<|end|>tail"
    assert spans_as_text(tokenizer, text, [(0, 9), (9, 23)]) == ["Hi<|end|>", "Grüße 🙂<|end|>"]


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [("Q: ", "word"), ("Q:", " word"), ("Q\n\n", "word"), ("Q\n", "\nword"), ("retu", "rn"), ("Q  ", "  x"), ("", "x")],
)
def test_a_prompt_has_the_tokens_it_has_alone(prompt, answer, tokenizer):
    encoder = Encoder(tokenizer)
    [encoded] = encoder.encode([prompt + answer], [[(len(prompt), len(prompt + answer))]])
    [(start, end)] = encoded.spans
    assert encoded.input_ids[:start] == tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(encoded.input_ids[start:end]) == answer


def test_a_token_across_the_end_of_a_span_belongs_to_it(tokenizer):
    word = max((token for token in tokenizer.get_vocab() if token.isascii() and token.isalpha()), key=len)
    assert spans_as_text(tokenizer, word, [(0, 1)]) == [word]


def test_a_tokenizer_without_offsets_is_refused():
    class SlowTokenizer:
        is_fast = False

    with pytest.raises(DataError, match="SlowTokenizer gives no character offsets"):
        Encoder(SlowTokenizer())
