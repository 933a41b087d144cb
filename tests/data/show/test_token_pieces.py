"""A token row is cut where characters end, whatever the tokenizer does with bytes and spaces."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from qlora_cli.constants import IGNORE_INDEX
from qlora_cli.data.example import Place
from qlora_cli.data.show.token_pieces import REPLACEMENT, pieces_of, runs_of
from qlora_cli.data.token_row import TokenRow
from qlora_cli.visible_text import visible
from tests.tiny_models import byte_tokenizer


def sentencepiece_tokenizer():
    """As Llama 2's: a space is `▁`, what is not in the vocabulary is bytes, decoding takes off the first space."""
    words = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", *"abcdefghij"]
    backend = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, [], byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


BYTES, SENTENCEPIECE = byte_tokenizer(), sentencepiece_tokenizer()


def row_of(ids, trained_from=0):
    labels = [IGNORE_INDEX] * trained_from + list(ids[trained_from:])
    return TokenRow(list(ids), labels, Place("t", 1, 1))


@pytest.mark.parametrize("tokenizer", [BYTES, SENTENCEPIECE], ids=["byte-level", "sentencepiece"])
@given(text=st.text(alphabet="ab 你𠀀🙂ü\n", min_size=1, max_size=30), share=st.floats(0, 1))
def test_pieces_hold_every_token_once_and_together_print_what_the_row_decodes_to(tokenizer, text, share):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = tokenizer.decode(ids)
    for cut in (pieces_of, runs_of):
        pieces = list(cut(row_of(ids), tokenizer))
        assert [token for piece in pieces for token in piece.input_ids] == ids
        assert "".join(piece.text for piece in pieces) == whole
    # Where the mask parts a row in the middle of a character, each side still shows all of its tokens.
    parted = list(pieces_of(row_of(ids, round(share * len(ids))), tokenizer))
    assert [token for piece in parted for token in piece.input_ids] == ids


def test_a_character_of_four_tokens_is_one_piece_and_a_letter_is_another():
    pieces = list(pieces_of(row_of(BYTES("🙂a", add_special_tokens=False)["input_ids"]), BYTES))
    assert [(piece.start, len(piece.input_ids), piece.text) for piece in pieces] == [(0, 4, "🙂"), (4, 1, "a")]


def test_sentencepiece_keeps_the_space_between_two_tokens():
    ids = SENTENCEPIECE("a b", add_special_tokens=False)["input_ids"]
    assert [piece.text for piece in pieces_of(row_of(ids), SENTENCEPIECE)] == ["", "a", " ", "b"]


def test_each_special_token_is_a_piece_of_its_own_and_text_that_spells_one_is_not_special():
    end = BYTES.eos_token_id
    spelled = BYTES.backend_tokenizer.encode("<|im_", add_special_tokens=False).ids
    pieces = list(pieces_of(row_of([end, end, *spelled]), BYTES))
    assert [(piece.text, piece.is_special) for piece in pieces[:3]] == [
        ("<|im_end|>", True),
        ("<|im_end|>", True),
        ("<", False),
    ]


def test_bytes_that_are_no_character_are_shown_as_replaced_and_do_not_take_for_ever():
    [byte] = BYTES.backend_tokenizer.encode("é", add_special_tokens=False).ids[1:]
    start = time.perf_counter()
    pieces = list(pieces_of(row_of([byte] * 4000), BYTES))
    assert time.perf_counter() - start < 5
    assert {*"".join(piece.text for piece in pieces)} == {REPLACEMENT}
    assert sum(len(piece.input_ids) for piece in pieces) == 4000


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain 你好 🙂👩‍👩‍👧", "plain 你好 🙂👩‍👩‍👧"),  # the joiner in a family is no control character
        ("\x1b[2J\x07\x7f\x85", "\\x1b[2J\\x07\\x7f\\x85"),
        ("a\u202egpj.exe", "a\\u202egpj.exe"),
        ("\ud800", "\\ud800"),
        ("a\tb\nc\r\n", "a\tb\nc\\r\n"),
    ],
)
def test_text_that_would_act_on_a_terminal_is_shown_by_signs(text, shown):
    assert visible(text) == shown


@given(st.text(st.characters()))
def test_what_is_shown_token_by_token_prints_and_is_one_line(text):
    shown = visible(text, is_each_seen=True)
    assert shown.isprintable()
    assert " " not in shown
