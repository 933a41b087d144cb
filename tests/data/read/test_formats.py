"""Rows of every layout become examples, and rows that do not fit say why."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_cli.data.example import Conversation, Place, PlainText
from qlora_cli.data.read.converters import FORMATS
from qlora_cli.data.read.formats import detect_format, resolve_format, to_example
from qlora_cli.data.rejection import RejectionReason, RowError
from qlora_cli.errors import DataError

PLACE = Place("a.jsonl", 3, 3)
HI = {"role": "user", "content": "Hi"}
HELLO = {"role": "assistant", "content": "Hello"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"city": "Bonn"}}}


def convert(row, layout, columns=None):
    return to_example(row, PLACE, layout, columns or {})


def messages_of(row, layout):
    return convert(row, layout).messages


def test_alpaca_joins_instruction_and_input_and_keeps_them_apart_too():
    row = {"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be exact."}
    assert messages_of(row, "alpaca") == [
        {"role": "system", "content": "Be exact."},
        {"role": "user", "content": "Add.\n\n1 2", "instruction": "Add.", "input": "1 2"},
        {"role": "assistant", "content": "3"},
    ]


@pytest.mark.parametrize("given", ["", " ", None])
def test_alpaca_without_input_is_the_instruction_alone(given):
    row = {"instruction": "Hi", "input": given, "output": "Hello"}
    assert messages_of(row, "alpaca") == [HI, HELLO]


def test_columns_map_format_fields_to_the_datasets_names():
    example = convert({"question": "Hi", "answer": "Hello"}, "alpaca", {"instruction": "question", "output": "answer"})
    assert example == Conversation([HI, HELLO], None, PLACE)


def test_content_parts_become_one_string():
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    assert messages_of({"messages": [{"role": "user", "content": parts}, HELLO]}, "messages") == [HI, HELLO]


def test_tool_calls_go_without_content_and_their_json_arguments_are_read():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"city": "Bonn"}'}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "content": "sunny", "tool_call_id": "1"}
    row = {"messages": [HI, turn, result, HELLO], "tools": '[{"type": "function", "function": {"name": "f"}}]'}
    example = convert(row, "messages")
    assert example.messages == [HI, {"role": "assistant", "tool_calls": [{"id": "1", **CALL}]}, result, HELLO]
    assert example.tools == [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize("human", ["human", "user"])
@pytest.mark.parametrize("gpt", ["gpt", "assistant", "chatgpt", "model"])
def test_sharegpt_role_names_are_understood(human, gpt):
    turns = [{"from": "system", "value": "s"}, {"from": human, "value": "Hi"}, {"from": gpt, "value": "Hello"}]
    assert messages_of({"conversations": turns}, "sharegpt") == [{"role": "system", "content": "s"}, HI, HELLO]


def test_a_sharegpt_function_call_is_an_assistant_turn_with_a_tool_call():
    turns = [
        {"from": "human", "value": "Hi"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"city": "Bonn"}}'},
        {"from": "observation", "value": "sunny"},
        {"from": "gpt", "value": "Hello"},
    ]
    messages = messages_of({"conversations": turns, "system": "s", "tools": "[]"}, "sharegpt")
    assert messages[2] == {"role": "assistant", "tool_calls": [CALL]}
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "assistant"]


def test_prompt_and_completion_are_plain_text_or_messages():
    assert convert({"prompt": "Q:", "completion": " A"}, "prompt_completion") == PlainText("Q:", " A", PLACE)
    example = convert({"prompt": [HI], "completion": [HELLO]}, "prompt_completion")
    assert example == Conversation([HI, HELLO], None, PLACE)


@pytest.mark.parametrize("answer", ["Hello", HELLO, [HELLO], {"from": "gpt", "value": "Hello"}])
def test_a_prompt_of_messages_is_answered_by_words_or_messages(answer):
    assert convert({"prompt": [HI], "completion": answer}, "prompt_completion").messages == [HI, HELLO]


def test_only_the_completion_is_trained_and_what_a_message_says_itself_stands():
    prompt = [HI, HELLO, HI, {**HELLO, "train": True}, HI, {**HELLO, "weight": 0}, HI]
    messages = messages_of({"prompt": prompt, "completion": [HELLO]}, "prompt_completion")
    assert [message.get("train") for message in messages] == [None, False, None, True, None, None, None, None]
    assert messages[-1] == HELLO


PAIR = {
    "conversations": [
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello"},
        {"from": "human", "value": "?"},
    ],
    "chosen": {"from": "gpt", "value": "!"},
    "rejected": {"from": "gpt", "value": "no"},
}


def test_a_preference_pair_is_trained_on_the_chosen_answer_where_the_recipe_says_so():
    columns = {"completion": "chosen"}
    assert resolve_format(None, columns, PAIR, PLACE) == "sharegpt"
    assert convert(PAIR, "sharegpt", columns).messages == [
        HI,
        {**HELLO, "train": False},
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "!"},
    ]


def test_a_preference_pair_is_refused_with_what_to_type_otherwise():
    with pytest.raises(RowError) as caught:
        convert(PAIR, resolve_format(None, {}, PAIR, PLACE))
    assert caught.value.cause is RejectionReason.NO_ANSWER
    assert "`columns: {completion: chosen}`; `rejected` is not used then" in caught.value.problems[0].hint


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": "Hi", "chosen": "Hello", "rejected": "no"}, "completion"),
        ({"prompt": [HI], "chosen": [HELLO], "rejected": [HELLO]}, "completion"),
        ({"chosen": [HI, HELLO], "rejected": [HI, HELLO]}, "messages"),
    ],
)
def test_the_hint_for_preference_pairs_works(row, field):
    with pytest.raises(DataError, match=rf"`columns: {{{field}: chosen}}`"):
        resolve_format(None, {}, row, PLACE)
    columns = {field: "chosen"}
    example = convert(row, resolve_format(None, columns, row, PLACE), columns)
    assert example in (Conversation([HI, HELLO], None, PLACE), PlainText("Hi", "Hello", PLACE))


def test_a_column_named_completion_is_not_put_behind_messages_unasked():
    assert messages_of({"messages": [HI, HELLO], "completion": "Bye"}, "messages") == [HI, HELLO]


@pytest.mark.parametrize(
    ("row", "layout", "cause"),
    [
        ({"messages": [HI]}, "messages", RejectionReason.NO_ANSWER),
        ({"messages": [HI, HELLO, HI]}, "messages", RejectionReason.NO_ANSWER),
        ({"messages": [HI, {**HELLO, "content": ""}]}, "messages", RejectionReason.EMPTY_ANSWER),
        ({"conversations": [{"from": "gpt", "value": " "}]}, "sharegpt", RejectionReason.EMPTY_ANSWER),
        ({"instruction": "a", "output": ""}, "alpaca", RejectionReason.EMPTY_ANSWER),
        ({"prompt": "a", "completion": "\n"}, "prompt_completion", RejectionReason.EMPTY_ANSWER),
        ({"text": ""}, "text", RejectionReason.EMPTY_ANSWER),
        ({"instruction": "", "output": "a"}, "alpaca", RejectionReason.FORMAT),
        ({"instruction": "a"}, "alpaca", RejectionReason.FORMAT),
        ({"messages": "Hi"}, "messages", RejectionReason.FORMAT),
    ],
)
def test_a_row_that_does_not_fit_is_counted_under_its_cause(row, layout, cause):
    with pytest.raises(RowError) as caught:
        convert(row, layout)
    assert caught.value.cause is cause


def test_text_has_no_prompt():
    assert convert({"text": "words"}, "text") == PlainText("", "words", PLACE)


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_detected_from_its_required_columns(name):
    assert detect_format([*FORMATS[name].required, "id", "source"]) == name


def test_a_mapping_takes_part_in_the_detection():
    columns = {"instruction": "question", "output": "answer"}
    assert resolve_format(None, columns, ["question", "answer"], PLACE) == "alpaca"


@pytest.mark.parametrize(
    ("columns", "seen", "fragment"),
    [
        ({}, ["question", "answer"], "no format fits the columns: question, answer\nhint: set `format` and `columns`"),
        ({}, ["text", "messages"], "fit more than one format: messages, text\nhint: choose one"),
        (
            {"instruction": "qestion"},
            ["question"],
            "names 'qestion', and the columns are: question\nhint: did you mean",
        ),
        ({"instruction": "q", "output": "a", "inptu": "x"}, ["q", "a", "x"], "maps 'inptu', which format alpaca does"),
    ],
)
def test_columns_that_do_not_fit_are_refused_with_what_to_type(columns, seen, fragment):
    with pytest.raises(DataError) as caught:
        resolve_format(None, columns, seen, PLACE)
    assert f"error: a.jsonl:3: {'the columns (text, messages) ' if 'more' in fragment else ''}" in str(caught.value)
    assert fragment in str(caught.value)


BAD_MESSAGES = [
    (None, "messages must be a list of messages, found null"),
    ("Hi", "messages must be a list of messages, found a string"),
    ([], "messages holds no message"),
    (["Hi"], "message 1 of messages must be an object, found a string"),
    ([{"content": "Hi"}], "message 1 of messages has no `role`"),
    ([{"role": "User", "content": "Hi"}], "message 1 of messages has the unknown role 'User'"),
    ([{"role": ["user"], "content": "Hi"}], "message 1 of messages has the unknown role ['user']"),
    ([{"role": "user"}], "message 1 of messages has no `content`"),
    ([{"role": "user", "content": None}, HELLO], "message 1 of messages has content null"),
    ([{"role": "user", "content": 3}, HELLO], "content of message 1 of messages must be a string, found a number"),
    ([{"role": "user", "content": {"a": 1}}], "must be a string, found an object"),
    (
        [{"role": "user", "content": [{"type": "image", "url": "x"}]}],
        "part 1 of content of message 1 of messages is not",
    ),
    ([{"role": "user", "content": [["x"]]}], "part 1 of content of message 1 of messages is not text but a list"),
    ([HI], "no assistant turn, so there is nothing to learn"),
    ([HI, HELLO, HI], "the last message is from 'user', not from the assistant"),
    ([HI, {"role": "assistant", "content": ""}], "message 2 of messages: the assistant's answer is empty"),
    ([HI, {"role": "assistant", "content": " \n"}], "the assistant's answer is empty"),
    ([{**HI, "tool_calls": [CALL]}, HELLO], "only the assistant calls tools, not 'user'"),
    ([HI, {**HELLO, "tool_calls": "f()"}], "tool_calls of message 2 of messages must be a list"),
    ([HI, {**HELLO, "tool_calls": [{"id": 1}]}], "a tool call in message 2 of messages has no function name"),
    (
        [HI, {**HELLO, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
        "arguments of a tool call in message 2 of messages: broken JSON",
    ),
    (
        [HI, {**HELLO, "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}],
        "arguments of a tool call in message 2 of messages must be an object, found a list",
    ),
]


@pytest.mark.parametrize(("messages", "fragment"), BAD_MESSAGES)
def test_bad_messages_are_refused_with_their_place(messages, fragment):
    with pytest.raises(DataError) as caught:
        convert({"messages": messages}, "messages")
    assert caught.value.problems[0].place == "a.jsonl:3"
    assert fragment in caught.value.problems[0].text


@pytest.mark.parametrize(
    ("row", "layout", "fragment"),
    [
        (
            {"conversations": [{"role": "user", "content": "Hi"}]},
            "sharegpt",
            "turn 1 of conversations must have `from`",
        ),
        ({"conversations": [{"from": "alien", "value": "Hi"}]}, "sharegpt", "is from the unknown 'alien'"),
        ({"conversations": "Hi"}, "sharegpt", "conversations must be a list of turns, found a string"),
        ({"prompt": "Hi", "completion": ["a"]}, "prompt_completion", "completion must be a string, found a list"),
        ({"prompt": None, "completion": "a"}, "prompt_completion", "prompt must be a string, found null"),
        ({"prompt": "Hi", "completion": ""}, "prompt_completion", "completion is empty"),
        (
            {"prompt": [HI], "completion": [HI, HELLO]},
            "prompt_completion",
            "starts with the first message",
        ),
        ({"prompt": [HI], "completion": 3}, "prompt_completion", "message 1 of completion must be an object"),
        ({"text": ""}, "text", "text is empty"),
        ({"text": ["a"]}, "text", "text must be a string, found a list"),
        ({"messages": [HI, HELLO], "tools": "{"}, "messages", "tools: broken JSON"),
        ({"messages": [HI, HELLO], "tools": {"a": 1}}, "messages", "tools must be a list of JSON schemas"),
    ],
)
def test_bad_rows_of_the_other_formats_are_refused_with_their_place(row, layout, fragment):
    with pytest.raises(DataError) as caught:
        convert(row, layout)
    assert caught.value.problems[0].place == "a.jsonl:3"
    assert fragment in caught.value.problems[0].text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "type", "text", "tool_calls"]), inner)
    ),
    max_leaves=12,
)


@given(st.sampled_from(sorted(FORMATS)), st.data())
def test_whatever_a_row_holds_it_converts_or_is_refused(name, data):
    row = data.draw(st.fixed_dictionaries(dict.fromkeys(FORMATS[name].fields, JSON)))
    try:
        place = convert(row, name).place
    except DataError as error:
        place = error.problems[0].place
    assert str(place) == "a.jsonl:3"
