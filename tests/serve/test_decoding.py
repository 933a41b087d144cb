import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_cli.model.tiny_tokenizer import train_tokenizer
from qlora_cli.serve.decoding import StreamDecoder

TOKENIZER = train_tokenizer(["the cat sat on the mat"], 270, max_length=64)


def pieces_of(ids):
    decoder = StreamDecoder(TOKENIZER)
    return [*(decoder.push(token_id) for token_id in ids), decoder.finish()]


@given(st.text())
def test_pieces_add_up_to_the_text(text):
    ids = TOKENIZER(text, add_special_tokens=False).input_ids
    assert "".join(pieces_of(ids)) == TOKENIZER.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("text", ["naïve", "日本語", "👩🏽‍🚀", "café ☕\n"])
def test_no_piece_holds_half_a_character(text):
    ids = TOKENIZER(text).input_ids
    assert len(ids) > len(text)
    assert all("\ufffd" not in piece for piece in pieces_of(ids))


def test_text_comes_as_soon_as_it_is_certain():
    assert pieces_of(TOKENIZER("zé").input_ids) == ["z", "", "é", ""]


def test_a_character_that_is_cut_off_is_left_out():
    assert "".join(pieces_of(TOKENIZER("ok 👍").input_ids[:-1])) == "ok "


def test_bytes_that_are_no_text_do_not_hold_back_what_follows():
    broken = TOKENIZER("é").input_ids[:1]
    assert "".join(pieces_of([*broken, *TOKENIZER("ok").input_ids])) == "\ufffdok"


def test_special_tokens_are_not_printed():
    ids = [*TOKENIZER("hi", add_special_tokens=False).input_ids, TOKENIZER.eos_token_id]
    assert "".join(pieces_of(ids)) == "hi"
