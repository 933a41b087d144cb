"""The page of previews shows all of a row, and nothing in the data becomes part of the page."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from qlora_cli.constants import IGNORE_INDEX
from qlora_cli.data.example import Place
from qlora_cli.data.rejection import Rejection, RejectionReason
from qlora_cli.data.show.preview import ShownRow
from qlora_cli.data.show.preview_page import NUM_TOKENS_DRAWN, NUM_TOKENS_OPEN, page, write_page
from qlora_cli.data.token_row import TokenRow
from qlora_cli.errors import ArgumentError
from tests.tiny_models import byte_tokenizer

TOKENIZER = byte_tokenizer()
PLACE = Place("a.jsonl", 3, 3)
NASTY = "</pre><script>alert('x')</script>\"'&amp; <img src=x onerror=y> \x1b[2J \u202e \ud800"


class Elements(HTMLParser):
    """The elements of a page and the text inside them."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def named(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]


def shown(text, trained_from=0, **more):
    ids = TOKENIZER.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ShownRow(PLACE, TokenRow(ids, [IGNORE_INDEX] * trained_from + ids[trained_from:], PLACE), **more)


def rejected(row, text="no answer", hint="write one"):
    return ShownRow(PLACE, None, Rejection(PLACE, RejectionReason.EMPTY_ANSWER, text, hint, row), mark="not trained on")


def test_no_text_of_the_data_becomes_an_element_or_an_attribute():
    plain = Elements(page("t", [shown("x" * 20), rejected("x", "x", "x")], TOKENIZER))
    place = Place(NASTY, 1, 1)
    nasty = [
        shown(NASTY.replace("\ud800", ""), mark=NASTY),
        ShownRow(place, None, Rejection(place, RejectionReason.FORMAT, NASTY, NASTY, {NASTY: NASTY})),
    ]
    html = page(NASTY, nasty, TOKENIZER)
    html.encode("utf-8")
    found = Elements(html)
    assert {tag for tag, _ in found.elements} <= {tag for tag, _ in plain.elements} | {"i"}
    assert {name for _, attributes in found.elements for name in attributes} <= {
        name for _, attributes in plain.elements for name in attributes
    }
    assert "<script>alert('x')</script>" in found.text


def test_nothing_is_loaded_and_nothing_runs():
    html = page("t", [shown("x")], TOKENIZER)
    assert "default-src 'none'" in html
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in Elements(html).elements}
    assert "url(" not in html
    assert "@import" not in html


def test_every_token_has_its_id_and_position_and_stands_on_the_side_that_it_is_on():
    row = shown("ab🙂<|im_end|>", trained_from=2)
    html = page("t", [row], TOKENIZER)
    tokens = [attributes["data-i"] for attributes in Elements(html).named("s", "b") if attributes]
    ids = row.row.input_ids
    assert tokens == [
        f"id {ids[0]} at 0",
        f"id {ids[1]} at 1",
        f"id {ids[2]} {ids[3]} {ids[4]} {ids[5]} at 2-5",
        f"id {ids[6]} at 6",
    ]
    context, trained = html.split("<pre>")[1].split('<span class="t">')
    assert ">a<" in context
    assert ">🙂<" in trained
    assert f'<b data-i="id {ids[6]} at 6">&lt;|im_end|&gt;</b>' in trained


def test_a_long_example_is_folded_and_says_how_it_begins():
    short, long = Elements(page("t", [shown("a" * 9), shown("Once more. " * NUM_TOKENS_OPEN)], TOKENIZER)).named(
        "details"
    )
    assert ("open" in short, "open" in long) == (True, False)
    assert "Once more. Once more." in page("t", [shown("Once more. " * NUM_TOKENS_OPEN)], TOKENIZER).split("<pre>")[0]


def test_tokens_past_the_most_that_are_drawn_are_counted():
    html = page("t", [shown("a" * (NUM_TOKENS_DRAWN + 1234))], TOKENIZER)
    assert "and 1,234 more tokens, not drawn" in html
    assert len(Elements(html).named("s")) == NUM_TOKENS_DRAWN


def test_a_rejected_row_stands_there_with_cause_hint_and_its_text():
    text = Elements(page("t", [rejected({"output": ""})], TOKENIZER)).text
    for part in ("a.jsonl:3", "not trained on", "no answer", "hint: write one", '"output": ""'):
        assert part in text


def test_a_page_takes_the_place_of_the_one_before_and_its_folder_is_made(tmp_path):
    path = tmp_path / "new" / "page.html"
    for title in ("one", "two"):
        write_page(path, title, [shown("x")], TOKENIZER)
    assert "<title>two</title>" in path.read_text("utf-8")
    assert [entry.name for entry in path.parent.iterdir()] == ["page.html"]


def test_only_a_name_of_a_page_is_written_to(tmp_path):
    (tmp_path / "recipe.yaml").write_text("mine")
    with pytest.raises(ArgumentError, match=r"does not end in \.html"):
        write_page(tmp_path / "recipe.yaml", "t", [], TOKENIZER)
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(ArgumentError, match="was not written by qlora"):
        write_page(tmp_path / "folder.html", "t", [], TOKENIZER)
    assert (tmp_path / "recipe.yaml").read_text() == "mine"
