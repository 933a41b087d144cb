"""The preview shows what is trained, and special tokens."""

from __future__ import annotations

import json

import pytest

from qlora_cli.data.example import Conversation, Place
from qlora_cli.data.rejection import Rejection, RejectionReason
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.data.show.preview import ShownRow, show_example, show_ids, show_row

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.fixture
def example(tokenizer_for):
    """A row whose answer ends with a trained line end, and its tokenizer."""
    tokenizer = tokenizer_for(CHATML + PROMPT)
    messages = [{"role": "user", "content": "Grüße 🙂"}, {"role": "assistant", "content": "你好"}]
    [row] = Renderer(tokenizer).render([Conversation(messages, None, Place("t", 1, 1))])
    return row, tokenizer


def styled(text, style):
    return [text.plain[span.start : span.end] for span in text.spans if style in str(span.style)]


def test_trained_text_is_green_and_the_whole_text_is_there(example):
    text = show_example(*example)
    assert text.plain == "<|im_start|>user\nGrüße 🙂<|im_end|>\n<|im_start|>assistant\n你好<|im_end|>↵\n"
    assert "".join(styled(text, "green")) == "你好<|im_end|>↵"
    assert styled(text, "bold") == ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>"]


def test_brackets_stand_around_all_that_is_trained(example):
    text = show_example(*example, with_brackets=True).plain
    assert text.endswith("assistant\n⟦你好<|im_end|>↵⟧\n")
    assert (text.count("⟦"), text.count("⟧")) == (1, 1)


def test_ids_stand_one_a_line_with_position_and_what_they_are(example):
    row, tokenizer = example
    header, *lines = show_ids(row, tokenizer).plain.splitlines()
    assert header.split() == ["position", "id", "token"]
    assert [int(line.split()[0]) for line in lines] == list(range(len(row.input_ids)))
    assert [int(line.split()[1]) for line in lines] == row.input_ids
    assert [label if "trained" in line else -100 for line, label in zip(lines, row.labels, strict=True)] == row.labels
    assert lines[-2].split()[2:] == ["trained", "special", "<|im_end|>"]
    assert lines[-1].split()[2:] == ["trained", "↵"]


def test_a_character_of_several_tokens_stands_at_the_last_of_them(example):
    lines = show_ids(*example).plain.splitlines()
    at = next(at for at, line in enumerate(lines) if line.endswith("🙂"))
    assert [line.split()[-1] for line in lines[at - 3 : at]] == ["…", "…", "…"]


def test_a_row_without_tokens_is_shown_as_nothing(example):
    row, tokenizer = example
    row.input_ids.clear()
    assert show_example(row, tokenizer).plain == ""
    assert show_ids(row, tokenizer).plain.split() == ["position", "id", "token"]


def rejection(row, hint="write one"):
    place = Place("a.jsonl", 3, 3)
    return ShownRow(
        place, None, Rejection(place, RejectionReason.EMPTY_ANSWER, "no answer", hint, row), "not trained on"
    )


def test_an_example_is_headed_by_its_place_its_counts_and_what_becomes_of_it(example):
    row, tokenizer = example
    shown = ShownRow(Place("a.jsonl", 3, 3), row, mark="longer than max_length 8: refused")
    heading, *body = show_row(shown, tokenizer).plain.splitlines()
    num_trained = sum(label != -100 for label in row.labels)
    assert heading == (
        f"a.jsonl:3 · {len(row.input_ids)} tokens, {num_trained} of them trained · longer than max_length 8: refused"
    )
    assert body == show_example(row, tokenizer).plain.splitlines()


def test_a_rejected_row_is_shown_with_why_and_as_it_was_read(example):
    text = show_row(rejection({"output": "", "n": "Größe"}), example[1]).plain
    assert text.splitlines()[:3] == ["a.jsonl:3 · not trained on", "no answer", "hint: write one"]
    assert json.loads("".join(text.splitlines()[3:])) == {"output": "", "n": "Größe"}


def test_a_rejected_row_is_cut_where_it_is_very_long_and_says_so(example):
    text = show_row(rejection("x" * 5_002_000, hint=""), example[1]).plain
    assert text.splitlines()[-1] == "x" * 2000 + " … and 5,000,000 characters more"
