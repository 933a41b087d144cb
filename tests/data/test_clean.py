"""What `data.clean` takes out of one row, and what it leaves alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_cli.data.clean import Cleaner, answer_of
from qlora_cli.data.example import Conversation, Place, PlainText
from qlora_cli.data.read.formats import to_example
from qlora_cli.data.rejection import RejectionReason, RowError
from qlora_cli.recipe.data_schema import CleanSection

PLACE = Place("a.jsonl", 3, 3)
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rom"}}}


def cleaner(**section):
    return Cleaner(CleanSection(**section))


def conversation(*turns):
    return Conversation([{"role": role, "content": content} for role, content in turns], None, PLACE)


@pytest.mark.parametrize(
    ("row", "seen"),
    [
        ({"topic": "sky"}, "the required column 'question' is missing; there are: topic"),
        ({}, "the required column 'question' is missing; there are: none"),
        ({"question": None}, "the required column 'question' is null"),
        ({"question": float("nan")}, "the required column 'question' is null"),
        ({"question": " \n\t"}, "the required column 'question' is blank"),
        ({"question": []}, "the required column 'question' is an empty list"),
        ({"question": {}}, "the required column 'question' is an empty object"),
    ],
)
def test_a_required_column_that_holds_nothing_is_named_with_what_was_seen(row, seen):
    with pytest.raises(RowError) as caught:
        cleaner(required=["question"]).check_row(row, PLACE)
    [problem] = caught.value.problems
    assert (caught.value.cause, problem.place, problem.text) == (RejectionReason.REQUIRED, "a.jsonl:3", seen)


@pytest.mark.parametrize("value", ["x", 0, False, 0.0, [None], {"a": None}])
def test_zero_and_false_are_something(value):
    cleaner(required=["question"]).check_row({"question": value}, PLACE)


def test_columns_that_are_not_required_may_be_empty():
    cleaner(required=["question"]).check_row({"question": "x", "input": None}, PLACE)


@pytest.mark.parametrize(
    ("section", "cause", "text"),
    [
        ({"min_chars": 6}, RejectionReason.TOO_SHORT, "the answer has 5 characters, min_chars is 6"),
        ({"max_chars": 4}, RejectionReason.TOO_MANY_CHARS, "the answer has 5 characters, max_chars is 4"),
    ],
)
@pytest.mark.parametrize(
    "example",
    [
        PlainText("a long prompt", "  Paris\n", PLACE),
        conversation(("user", "a long prompt"), ("assistant", " Paris ")),
        conversation(("user", "a"), ("assistant", "a long answer"), ("user", "b"), ("assistant", "Paris")),
    ],
)
def test_the_last_answer_is_measured_without_the_spaces_around_it(section, cause, text, example):
    with pytest.raises(RowError) as caught:
        cleaner(**section).clean(example)
    [problem] = caught.value.problems
    assert (caught.value.cause, problem.place, problem.text) == (cause, "a.jsonl:3", text)


def test_an_answer_of_exactly_either_bound_stays():
    example = PlainText("", "Paris", PLACE)
    assert cleaner(min_chars=5, max_chars=5).clean(example) is example


def test_the_answer_of_a_turn_that_only_calls_tools_is_its_calls():
    example = Conversation([{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [CALL]}], None, PLACE)
    assert answer_of(example) == '[{"name": "weather", "arguments": {"city": "Rom"}}]'
    assert cleaner(min_chars=3).clean(example) is example


def test_the_answer_is_the_assistants_also_where_others_speak_after_it():
    assert answer_of(conversation(("assistant", "one"), ("user", "two"))) == "one"


def test_strip_takes_the_spaces_around_every_turn_and_nothing_else():
    message = {"role": "assistant", "content": " a  b\n", "reasoning_content": "\nhm ", "tool_calls": [CALL]}
    example = Conversation([{"role": "user", "content": "\n q "}, message], None, PLACE)
    [user, assistant] = cleaner(strip=True).clean(example).messages
    assert user == {"role": "user", "content": "q"}
    assert assistant == {"role": "assistant", "content": "a  b", "reasoning_content": "hm", "tool_calls": [CALL]}
    assert example.messages[0]["content"] == "\n q "


def test_strip_keeps_the_parts_of_an_alpaca_row_and_their_sum_the_same():
    row = {"instruction": " Add. ", "input": "\n1 2 ", "output": "3 "}
    [user, assistant] = cleaner(strip=True).clean(to_example(row, PLACE, "alpaca", {})).messages
    assert user == {"role": "user", "content": "Add.\n\n1 2", "instruction": "Add.", "input": "1 2"}
    assert assistant["content"] == "3"


def test_strip_leaves_a_message_alone_that_only_looks_like_an_alpaca_row():
    message = {"role": "user", "content": " q ", "instruction": "i", "input": "j"}
    example = Conversation([message, {"role": "assistant", "content": "a"}], None, PLACE)
    assert cleaner(strip=True).clean(example).messages[0] == {**message, "content": "q"}


@pytest.mark.parametrize(
    ("prompt", "completion", "stripped"),
    [
        (" Q: cat\nA: ", "chat \n", ("Q: cat\nA: ", "chat")),
        ("Q: cat\nA:", " chat ", ("Q: cat\nA:", " chat")),
        ("", "\n text ", ("", "text")),
        (" \n", " text", ("", "text")),
    ],
)
def test_strip_keeps_what_parts_a_completion_from_its_prompt(prompt, completion, stripped):
    example = cleaner(strip=True).clean(PlainText(prompt, completion, PLACE))
    assert (example.prompt, example.completion) == stripped


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), st.text(max_size=9)), min_size=1))
def test_stripping_twice_is_stripping_once(turns):
    strip = cleaner(strip=True)
    once = strip.clean(conversation(*turns))
    assert strip.clean(once) == once
    assert [message["content"] for message in once.messages] == [content.strip() for _, content in turns]


def test_without_a_section_rows_are_the_same_objects():
    example = conversation(("user", " q "), ("assistant", ""))
    Cleaner(None).check_row({}, PLACE)
    assert Cleaner(None).clean(example) is example
