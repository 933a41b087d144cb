"""Spans of characters become spans of tokens, and a prompt's tokens never depend on the answer."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from qlora_cli.data.render.encoding import Encoder
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


def byte_level():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend, pre_tokenizers.ByteLevel.alphabet()


def sentencepiece():
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend, list("▁ab:\n 1é🙂.<|end>")


def trained(backend, alphabet):
    corpus = ["ab ba: a\nb\n\n  a 11. ab<end>", "aab  abb\n bb"] * 20
    backend.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<unk>"])
    )
    backend.add_special_tokens(["<|end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", unk_token="<unk>")


TOKENIZERS = {"byte level": trained(*byte_level()), "sentencepiece": trained(*sentencepiece())}
LETTERS = "ab :\n1é🙂."
TURNS = st.lists(st.tuples(st.text(LETTERS, max_size=5), st.text(LETTERS, max_size=5)), min_size=1, max_size=3)


def reference(tokenizer, text, spans):
    """One call of the tokenizer for each piece, cut at the starts of spans; ends by the offsets of its tokens."""
    starts = [0, *(start for start, _ in spans), len(text)]
    input_ids, token_spans = [], []
    for number, (left, right) in enumerate(pairwise(starts)):
        encoding = tokenizer.backend_tokenizer.encode(text[left:right], add_special_tokens=False)
        if number:
            end = spans[number - 1][1] - left
            num_tokens = sum(first < end for first, _ in encoding.offsets)
            token_spans.append((len(input_ids), len(input_ids) + num_tokens))
        input_ids += encoding.ids
    return input_ids, token_spans


@settings(max_examples=150, deadline=None)
@given(turns=TURNS, end=st.sampled_from(["<|end|>", "<|end|>\n", "", "\n"]))
def test_pieces_have_the_tokens_that_one_call_each_gives(turns, end):
    tokenizer = TOKENIZERS["byte level"]
    encoder = Encoder(tokenizer)
    text, spans = "", []
    for prompt, answer in turns:
        text += prompt
        spans.append((len(text), len(text + answer + end)))
        text += answer + end
    [encoded] = encoder.encode([text], [spans])
    assert (encoded.input_ids, encoded.spans) == reference(tokenizer, text, spans)


@settings(max_examples=150, deadline=None)
@given(turns=TURNS)
@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_cutting_gives_what_the_whole_text_gives_with_its_merged_rows_cut(name, turns):
    encoder, whole = Encoder(TOKENIZERS[name]), Encoder(TOKENIZERS[name])
    whole._cuts_freely = False
    text, spans = "", []
    for prompt, answer in turns:
        text += prompt
        spans.append((len(text), len(text + answer) + len("<|end|>")))
        text += answer + "<|end|>"
    assert encoder.encode([text], [spans]) == whole.encode([text], [spans])


def test_sentencepiece_is_asked_for_whole_texts():
    assert not Encoder(TOKENIZERS["sentencepiece"])._cuts_freely
    assert Encoder(TOKENIZERS["byte level"])._cuts_freely


def test_a_tokenizer_without_offsets_is_refused():
    class SlowTokenizer:
        is_fast = False

    with pytest.raises(DataError, match="SlowTokenizer gives no character offsets"):
        Encoder(SlowTokenizer())
