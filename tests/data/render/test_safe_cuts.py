"""A cut that counts as safe changes no token."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from qlora_cli.data.render.safe_cuts import SafeCuts

ADDED = [
    AddedToken("<|end|>", special=True),
    AddedToken("</s>", special=True),
    AddedToken("<left>", special=True, lstrip=True),
    AddedToken("<right>", special=True, rstrip=True),
    AddedToken("<word>", special=True, single_word=True),
    AddedToken("<norm>", special=False, normalized=True),
    AddedToken("<a>", special=True),
    AddedToken("<a><b>", special=True),
    AddedToken("xyx", special=True),
    AddedToken("\n", special=True),
]


def make_backend():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    corpus = ["a < b > c  word  <|x|>  end"] * 20
    backend.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    backend.add_tokens(ADDED)
    return backend


BACKEND = make_backend()
PIECES = st.sampled_from([*(token.content for token in ADDED), "a", "word", " ", "  ", "<", ">", "<b>", "yx", "é"])


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=8))
def test_a_safe_cut_changes_no_token(pieces):
    text = "".join(pieces)
    whole = BACKEND.encode(text).ids
    for at in range(len(text) + 1):
        if SafeCuts(BACKEND).is_safe(text, at):
            assert BACKEND.encode(text[:at]).ids + BACKEND.encode(text[at:]).ids == whole


@pytest.mark.parametrize("token", ["<|end|>", "</s>"])
def test_both_sides_of_a_plain_added_token_are_safe(token):
    text = f"some {token} text"
    assert [at for at in range(1, len(text)) if SafeCuts(BACKEND).is_safe(text, at)] == [5, 5 + len(token)]


@pytest.mark.parametrize("text", ["<word> a", "<norm> a", "<a> a", "xyx a", "\n a"])
def test_no_side_of_a_token_that_is_found_in_other_ways_is_safe(text):
    assert not any(SafeCuts(BACKEND).is_safe(text, at) for at in range(1, len(text)))
