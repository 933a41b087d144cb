"""What is noted about rows that can be trained on, and that ordinary rows are noted for nothing."""

from __future__ import annotations

import pytest

from qlora_cli.data.example import Conversation, Place, PlainText
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.data.row_warnings import RowWarner, RowWarning, is_in_order
from tests.data.conftest import make_tokenizer

CHATML = """{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}
{%- if m['content'] != 'unended' %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
PLACE = Place("a.jsonl", 1, 1)


@pytest.fixture(scope="module")
def renderer():
    return Renderer(make_tokenizer(CHATML, extra=("<s>",)))


def conversation(*turns):
    return Conversation([{"role": role, "content": content} for role, content in turns], None, PLACE)


def observed(renderer, example):
    [row] = renderer.render([example])
    return RowWarner(renderer).observe(example, row)


@pytest.mark.parametrize(
    "example",
    [
        conversation(("user", "Capital of France?"), ("assistant", "Paris")),
        conversation(("system", "Be brief."), ("user", "?"), ("assistant", "Yes"), ("user", "?"), ("assistant", "Yes")),
        PlainText("", "Some text.", PLACE),
        PlainText("Capital of France?", "Paris", PLACE),
    ],
)
def test_ordinary_rows_are_noted_for_nothing(renderer, example):
    assert observed(renderer, example) == []


@pytest.mark.parametrize(
    "roles",
    [
        "user assistant",
        "system user assistant",
        "developer user assistant user assistant",
        "user call tool assistant",
        "user call tool tool call tool assistant user assistant",
        "user call",
        "user call user assistant",
    ],
)
def test_turns_that_alternate_are_in_order(roles):
    assert is_in_order(messages_of(roles))


@pytest.mark.parametrize(
    "roles",
    [
        "assistant",
        "system assistant",
        "system system user assistant",
        "system developer user assistant",
        "user system assistant",
        "user assistant system user assistant",
        "user user assistant",
        "user assistant assistant",
        "user call assistant",
        "user tool assistant",
        "user assistant tool assistant",
        "user call tool user assistant",
    ],
)
def test_other_turns_are_out_of_order(roles):
    assert not is_in_order(messages_of(roles))


def messages_of(roles):
    return [{"role": "assistant", "tool_calls": [{}]} if role == "call" else {"role": role} for role in roles.split()]


def test_roles_out_of_order_are_noted(renderer):
    example = conversation(("user", "One"), ("user", "Two"), ("assistant", "Three"))
    assert observed(renderer, example) == [RowWarning.ROLE_ORDER]


@pytest.mark.parametrize(("answer", "is_short"), [("No", True), (" B \n", True), ("Yes", False)])
def test_an_answer_of_two_characters_is_noted(renderer, answer, is_short):
    noted = [RowWarning.SHORT_ANSWER] if is_short else []
    assert observed(renderer, conversation(("user", "?"), ("assistant", answer))) == noted
    assert observed(renderer, PlainText("?", answer, PLACE)) == noted


def test_special_tokens_in_the_text_are_noted(renderer):
    example = conversation(("user", "Ignore <|im_end|> and go on"), ("assistant", "No, thanks."))
    assert observed(renderer, example) == [RowWarning.SPECIAL_TEXT]


def test_two_tokens_that_begin_the_text_are_noted(renderer):
    twice = Renderer(make_tokenizer("{{ bos_token }}" + CHATML, extra=("<s>",)))
    example = conversation(("user", "Hello?"), ("assistant", "Hello."))
    assert observed(twice, example) == [RowWarning.DOUBLE_BOS]
    assert observed(renderer, example) == []


def test_a_tokenizer_without_a_beginning_token_begins_with_none_twice():
    tokenizer = make_tokenizer(CHATML.replace("{{ bos_token }}", ""))
    tokenizer.bos_token = None
    assert observed(Renderer(tokenizer), conversation(("user", "Hello?"), ("assistant", "Hello."))) == []


def test_an_answer_whose_turn_does_not_end_is_noted(renderer):
    example = conversation(("user", "Hello?"), ("assistant", "ended"), ("user", "And?"), ("assistant", "unended"))
    assert observed(renderer, example) == [RowWarning.UNENDED]


def test_the_end_that_counts_is_that_of_the_last_trained_answer(renderer):
    example = conversation(("user", "Hello?"), ("assistant", "Hello."))
    [row] = renderer.render([example])
    row.input_ids += [5, 6, 7]
    row.labels += [-100, -100, -100]
    assert RowWarner(renderer).observe(example, row) == []
    end = next(at for at in reversed(range(len(row.labels))) if row.labels[at] in renderer.end_of_turn_ids)
    row.labels[end:] = [-100] * len(row.labels[end:])
    assert RowWarner(renderer).observe(example, row) == [RowWarning.UNENDED]
