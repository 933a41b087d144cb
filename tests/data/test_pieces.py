"""Running text in pieces: every token of a document in exactly one, with what begins and ends it at its ends alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_cli.constants import IGNORE_INDEX
from qlora_cli.data.check import check_data
from qlora_cli.data.pieces import Pieces, cut_lengths
from qlora_cli.data.prepare import prepare_data
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.data.spool import Spool, batch_of
from qlora_cli.data.token_row import TokenRow
from qlora_cli.errors import DataError
from qlora_cli.recipe.data_schema import DataSection, SourceSection
from tests.data.conftest import make_tokenizer

TOKENIZER = make_tokenizer()
RENDERER = Renderer(TOKENIZER)
WORDS = "The committee met in spring and put the question off until the autumn, when nobody came. "


@given(st.lists(st.integers(1, 200), min_size=1, max_size=20), st.integers(8, 64))
def test_pieces_are_full_but_the_last_and_none_is_a_single_token(lengths, max_length):
    sizes, counts = cut_lengths(np.array(lengths), max_length)
    parts = np.split(sizes, np.cumsum(counts)[:-1])
    for length, part in zip(lengths, parts, strict=True):
        assert part.sum() == length
        assert part.max() <= max_length
        assert len(part) == -(-length // max_length)
        assert (part[:-1] >= max_length - 1).all()
        assert len(part) == 1 or part.min() >= 2


def write(path, texts, **columns):
    path.write_text("".join(json.dumps({"text": text, **columns}) + "\n" for text in texts))
    return path


def section(path, **keys):
    return DataSection(train=(SourceSection(path=str(path)),), **{"max_length": 32, "truncation": "split", **keys})


def pieces_by_document(rows):
    """Row of the source -> its pieces, in the order of the file of packed rows."""
    found = {}
    for document in rows.all_documents():
        found.setdefault(document.place.row, []).append(document)
    return found


@pytest.fixture
def texts(tmp_path):
    texts = [WORDS * number + "你好" for number in range(12)]
    return write(tmp_path / "a.jsonl", texts), texts


@pytest.mark.parametrize("packing", [False, True])
def test_every_token_of_a_document_is_in_exactly_one_piece(packing, texts):
    path, written = texts
    prepared = prepare_data(section(path, packing=packing), RENDERER, seed=1)
    found = pieces_by_document(prepared.train)
    assert sorted(found) == list(range(1, 13))
    for row, text in enumerate(written, start=1):
        whole = [*TOKENIZER(text)["input_ids"], TOKENIZER.eos_token_id]
        pieces = [piece.input_ids for piece in found[row]]
        if packing:  # pieces of a document may lie in any order; those of full length come first
            assert sorted(token for piece in pieces for token in piece) == sorted(whole)
        else:
            assert [token for piece in pieces for token in piece] == whole
        assert max(map(len, pieces)) <= 32
        eos = [piece.count(TOKENIZER.eos_token_id) for piece in pieces]
        assert sum(eos) == 1


def test_every_token_but_the_first_of_a_piece_is_trained_and_counted(texts):
    path, _ = texts
    prepared = prepare_data(section(path), RENDERER, seed=1)
    documents = list(prepared.train.all_documents())
    for document in documents:
        assert document.labels == [IGNORE_INDEX, *document.input_ids[1:]]
    report = prepared.report
    assert report.num_tokens == sum(len(document.input_ids) for document in documents)
    assert report.num_trained_tokens == sum(document.num_trained_tokens for document in documents)
    assert report.num_train == report.sources[0].num_kept == 12
    [cut] = [finding for finding in report.findings if finding.verdict == "cut"]
    num_pieces = sum(len(pieces) for pieces in pieces_by_document(prepared.train).values() if len(pieces) > 1)
    assert f"split into {num_pieces:,} pieces" in cut.text


def test_a_prefix_of_two_tokens_is_counted_as_untrained(tmp_path):
    spool = Spool(tmp_path)
    rows = [TokenRow(list(range(20)), [IGNORE_INDEX] * 2 + list(range(2, 20)), PLACE) for PLACE in [("f", 1, 1)] * 2]
    rows = [TokenRow(row.input_ids, row.labels, type("P", (), {"line": 1, "row": 1})) for row in rows]
    spool.append(batch_of(rows, [0, 0], [bytes(16)] * 2))
    spool.close()
    pieces = Pieces(spool, 8)
    numbers = pieces.of(np.array([1, 0]))
    ids, labels = pieces.tokens(numbers)
    assert ids.tolist() == list(range(20)) * 2
    trained = [
        int((part != IGNORE_INDEX).sum())
        for part in np.split(labels, np.cumsum(pieces.rows["num_tokens"][numbers]))[:-1]
    ]
    assert trained == pieces.rows["num_trained_tokens"][numbers].tolist() == [6, 7, 3] * 2


def test_a_document_is_held_out_whole(texts):
    path, _ = texts
    prepared = prepare_data(section(path, eval_fraction=0.3), RENDERER, seed=1)
    train, held_out = (set(pieces_by_document(part)) for part in (prepared.train, prepared.eval))
    assert not train & held_out
    assert len(train | held_out) == 12
    assert prepared.report.num_eval == 4


def test_the_same_pieces_come_again_and_from_the_cache(texts):
    path, _ = texts
    first, again = (prepare_data(section(path), RENDERER, seed=1) for _ in range(2))
    assert again.is_cached
    assert first.fingerprint == again.fingerprint


def test_long_rows_that_are_no_running_text_are_refused_under_split(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": WORDS * 3, "completion": "Yes."}) + "\n")
    with pytest.raises(DataError, match="only running text is split"):
        prepare_data(section(path), RENDERER, seed=1)


def test_the_hint_of_long_text_is_split_and_leads_to_a_run(texts):
    path, _ = texts
    with pytest.raises(DataError, match=r"hint: set `data.truncation: split` to cut the text into pieces"):
        prepare_data(section(path, truncation="refuse"), RENDERER, seed=1)
    for how in ("drop", "cut_prompt", "cut_middle_turns"):
        report = check_data(section(path, truncation=how), RENDERER, seed=1)
        [found] = [finding for finding in report.findings if finding.what == "longer than max_length"]
        assert found.verdict == "left out"
        assert "`data.truncation: split` cuts 11 of them into pieces" in found.hint
    assert check_data(section(path), RENDERER, seed=1).is_trainable
