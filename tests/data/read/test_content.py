"""Content in parts, thoughts before calls, and the calls of older files."""

from __future__ import annotations

import pytest

from qlora_cli.data.example import Place
from qlora_cli.data.read.formats import to_example
from qlora_cli.data.read.messages import check_message
from qlora_cli.data.rejection import RowError

PLACE = Place("a.jsonl", 3, 3)
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}
WRITTEN = '{"name": "weather", "arguments": {"city": "Bonn"}}'


def read(content, role="assistant", **others):
    return check_message({"role": role, "content": content, **others}, "message 2", PLACE)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": "Hi"},
        {"type": "text", "value": "Hi"},
        {"type": "text", "content": "Hi"},
        {"type": "output_text", "text": "Hi"},
        {"text": "Hi"},
        "Hi",
    ],
    ids=str,
)
def test_text_is_read_under_each_of_its_names(part):
    assert read([part, part])["content"] == "HiHi"


def test_reasoning_and_calls_among_the_parts_are_reasoning_and_calls():
    parts = [
        {"type": "reasoning", "value": "They want weather."},
        {"type": "text", "value": "Let me look."},
        {"type": "tool_call", "value": WRITTEN},
    ]
    assert read(parts) == {
        "role": "assistant",
        "content": "Let me look.",
        "reasoning_content": "They want weather.",
        "tool_calls": [CALL],
    }
    used = {"type": "tool_use", "id": "7", "name": "weather", "input": {"city": "Bonn"}}
    assert read([{"type": "thinking", "thinking": "Hm."}, used]) == {
        "role": "assistant",
        "reasoning_content": "Hm.",
        "tool_calls": [{**CALL, "id": "7"}],
    }


@pytest.mark.parametrize(
    ("parts", "fragment"),
    [
        ([{"type": "text", "text": "Hi"}, {"type": "reasoning", "value": "Hm."}], "is reasoning behind"),
        ([{"type": "tool_call", "value": WRITTEN}, {"type": "text", "text": "Hi"}], "is text behind a tool call"),
        ([{"type": "image_url", "image_url": {"url": "x"}}], "is not text but type 'image_url'"),
        ([{"type": "text", "text": 3}], "is not text but a number"),
        ([{"type": "tool_call", "value": "{"}], "broken JSON"),
    ],
)
def test_parts_that_cannot_be_kept_are_refused(parts, fragment):
    with pytest.raises(RowError, match=fragment):
        read(parts)


def test_only_the_assistant_reasons_and_calls():
    with pytest.raises(RowError, match="only the assistant reasons"):
        read([{"type": "reasoning", "value": "Hm."}, {"type": "text", "text": "Hi"}], "user")
    with pytest.raises(RowError, match="only the assistant calls tools"):
        read([{"type": "text", "text": "Hi"}, {"type": "tool_call", "value": WRITTEN}], "user")


@pytest.mark.parametrize("role", ["function_call", "tool_call"])
@pytest.mark.parametrize(
    "content",
    [
        f"<think>They want weather.</think>{WRITTEN}",
        f"<think>\nThey want weather.\n</think>\n\n[{WRITTEN}]",
        [{"type": "reasoning", "value": "They want weather."}, {"type": "tool_call", "value": WRITTEN}],
        [{"type": "text", "text": f"<think>They want weather.</think>{WRITTEN}"}],
    ],
)
def test_a_thought_before_a_call_is_reasoning(role, content):
    expected = {"role": "assistant", "reasoning_content": "They want weather.", "tool_calls": [CALL]}
    assert read(content, role) == expected
    row = {"conversations": [{"from": "human", "value": "?"}, {"from": role, "value": content}]}
    assert to_example(row, PLACE, "sharegpt", {}).messages[1] == expected


@pytest.mark.parametrize(
    ("content", "calls"),
    [
        (WRITTEN, [CALL]),
        (f"[{WRITTEN}, {WRITTEN}]", [CALL, CALL]),
        (f"{WRITTEN}\n{WRITTEN}", [CALL, CALL]),
        (f"<think>\n\n</think>{WRITTEN}", [CALL]),
        ({"name": "weather", "parameters": {"city": "Bonn"}}, [CALL]),
        ({"name": "weather", "arguments": '{"city": "Bonn"}'}, [CALL]),
        ({"name": "weather", "arguments": '"{\\"city\\": \\"Bonn\\"}"'}, [CALL]),
    ],
)
def test_a_turn_of_calls_holds_one_or_several(content, calls):
    assert read(content, "function_call") == {"role": "assistant", "tool_calls": calls}


@pytest.mark.parametrize("content", ["I will look.", f"{WRITTEN} done", "<think>Hm.</think>", "[]", '{"a": 1}'])
def test_a_turn_of_calls_that_holds_none_is_refused(content):
    with pytest.raises(RowError):
        read(content, "function_call")


def test_the_older_api_s_call_and_result_are_a_call_and_a_result():
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": '{"city": "Bonn"}'}},
        {"role": "function", "name": "weather", "content": "21"},
        {"role": "assistant", "content": "21 degrees.", "function_call": None},
    ]
    assert to_example({"messages": messages}, PLACE, "messages", {}).messages == [
        messages[0],
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "name": "weather", "content": "21"},
        {"role": "assistant", "content": "21 degrees."},
    ]


def test_calls_in_two_places_are_refused():
    with pytest.raises(RowError, match="tool calls in two places"):
        read(None, tool_calls=[CALL], function_call=CALL["function"])


def test_padding_is_taken_out_of_calls_and_tools_and_not_out_of_json_text():
    padded = {"function": {"name": "f", "arguments": {"city": "Bonn", "zip": None, "deep": {"a": None, "b": [None]}}}}
    assert read(None, tool_calls=[padded])["tool_calls"][0]["function"]["arguments"] == {
        "city": "Bonn",
        "deep": {"b": [None]},
    }
    written = {"function": {"name": "f", "arguments": '{"zip": null}'}}
    assert read(None, tool_calls=[written])["tool_calls"][0]["function"]["arguments"] == {"zip": None}
    row = {"messages": [{"role": "assistant", "content": "Hi"}], "tools": [{"name": "f", "strict": None}]}
    assert to_example(row, PLACE, "messages", {}).tools == [{"name": "f"}]


def test_keys_of_a_sharegpt_turn_are_kept_for_the_template():
    turns = [{"from": "human", "value": "Hi", "name": "Ann"}, {"from": "gpt", "value": "Hello", "loss": False}]
    assert to_example({"conversations": turns}, PLACE, "sharegpt", {}).messages == [
        {"role": "user", "content": "Hi", "name": "Ann"},
        {"role": "assistant", "content": "Hello", "train": False},
    ]
