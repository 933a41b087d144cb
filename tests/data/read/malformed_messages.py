"""Messages that cannot be trained on, and what is said of them."""

from __future__ import annotations

HI = {"role": "user", "content": "Hi"}
HELLO = {"role": "assistant", "content": "Hello"}


def calling(call):
    """A turn that calls a tool."""
    return {"role": "assistant", "content": None, "tool_calls": [call]}


MESSAGES = [
    ("null", None, "messages must be a list of messages, found null"),
    ("text", "Hi", "messages must be a list of messages, found a string"),
    ("number", 3, "messages must be a list of messages, found a number"),
    ("object", {"role": "user"}, "messages must be a list of messages, found an object"),
    ("empty", [], "messages holds no message"),
    ("nested", [[HI, HELLO]], "message 1 of messages must be an object, found a list"),
    ("words", ["Hi"], "message 1 of messages must be an object, found a string"),
    ("null_message", [None], "message 1 of messages must be an object, found null"),
    ("no_role", [{"content": "Hi"}], "message 1 of messages has no `role`"),
    ("unknown_role", [{"role": "User", "content": "Hi"}], "message 1 of messages has the unknown role 'User'"),
    ("narrator", [{"role": "narrator", "content": "Hi"}], "message 1 of messages has the unknown role 'narrator'"),
    ("human", [{"role": "human", "content": "Hi"}], "no assistant turn, so there is nothing to learn"),
    ("null_role", [{"role": None, "content": "Hi"}], "message 1 of messages has the unknown role null"),
    ("list_role", [{"role": ["user"], "content": "Hi"}], "message 1 of messages has the unknown role ['user']"),
    ("sharegpt", [{"from": "human", "value": "Hi"}], "message 1 of messages has no `role`"),
    ("no_content", [{"role": "user"}], "message 1 of messages has no `content`"),
    ("null_content", [{"role": "user", "content": None}, HELLO], "message 1 of messages has content null"),
    (
        "number_content",
        [{"role": "user", "content": 3}, HELLO],
        "content of message 1 of messages must be a string, found a number",
    ),
    (
        "object_content",
        [{"role": "user", "content": {"text": "Hi"}}, HELLO],
        "content of message 1 of messages must be a string, found an object",
    ),
    (
        "image",
        [{"role": "user", "content": [{"type": "image", "url": "x"}]}, HELLO],
        "part 1 of content of message 1 of messages is not text but type 'image'",
    ),
    (
        "nested_content",
        [{"role": "user", "content": [["Hi"]]}, HELLO],
        "part 1 of content of message 1 of messages is not text but a list",
    ),
    (
        "null_part",
        [{"role": "user", "content": [{"type": "text", "text": None}]}, HELLO],
        "part 1 of content of message 1 of messages is not text but null",
    ),
    ("no_answer", [HI], "no assistant turn, so there is nothing to learn"),
    ("only_system", [{"role": "system", "content": "s"}], "no assistant turn, so there is nothing to learn"),
    ("ends_with_user", [HI, HELLO, HI], "the last message is from 'user', not from the assistant"),
    (
        "ends_with_tool",
        [HI, HELLO, {"role": "tool", "content": "x"}],
        "the last message is from 'tool', not from the assistant",
    ),
    (
        "empty_answer",
        [HI, {"role": "assistant", "content": ""}],
        "message 2 of messages: the assistant's answer is empty",
    ),
    (
        "blank_answer",
        [HI, {"role": "assistant", "content": " \n"}],
        "message 2 of messages: the assistant's answer is empty",
    ),
    (
        "empty_answer_in_the_middle",
        [HI, {"role": "assistant", "content": ""}, HI, HELLO],
        "message 2 of messages: the assistant's answer is empty",
    ),
    (
        "empty_parts",
        [HI, {"role": "assistant", "content": []}],
        "message 2 of messages: the assistant's answer is empty",
    ),
    (
        "call_by_user",
        [{**HI, "tool_calls": [{"name": "f", "arguments": {}}]}, HELLO],
        "message 1 of messages: only the assistant calls tools, not 'user'",
    ),
    (
        "calls_text",
        [HI, {**HELLO, "tool_calls": "f()"}],
        "tool_calls of message 2 of messages must be a list of objects",
    ),
    (
        "calls_object",
        [HI, {**HELLO, "tool_calls": {"name": "f"}}],
        "tool_calls of message 2 of messages must be a list of objects",
    ),
    ("call_null", [HI, calling(None)], "tool_calls of message 2 of messages must be a list of objects"),
    ("call_without_name", [HI, calling({"id": 1})], "a tool call in message 2 of messages has no function name"),
    (
        "call_name_number",
        [HI, calling({"function": {"name": 3}})],
        "a tool call in message 2 of messages has no function name",
    ),
    (
        "call_function_text",
        [HI, calling({"function": "f"})],
        "a tool call in message 2 of messages has no function name",
    ),
    (
        "arguments_broken",
        [HI, calling({"function": {"name": "f", "arguments": "f("}})],
        "arguments of a tool call in message 2 of messages: broken JSON: Expecting value (column 1)",
    ),
    (
        "arguments_list",
        [HI, calling({"function": {"name": "f", "arguments": [1]}})],
        "arguments of a tool call in message 2 of messages must be an object, found a list",
    ),
    (
        "arguments_text",
        [HI, calling({"function": {"name": "f", "arguments": '"x"'}})],
        "arguments of a tool call in message 2 of messages: broken JSON: Expecting value (column 1)",
    ),
    (
        "arguments_empty",
        [HI, calling({"function": {"name": "f", "arguments": ""}})],
        "arguments of a tool call in message 2 of messages: broken JSON: Expecting value (column 1)",
    ),
    (
        "arguments_number",
        [HI, calling({"function": {"name": "f", "arguments": 3}})],
        "arguments of a tool call in message 2 of messages must be an object, found a number",
    ),
    (
        "arguments_nan",
        [HI, calling({"function": {"name": "f", "arguments": '{"x": NaN}'}})],
        "arguments of a tool call in message 2 of messages: NaN is not JSON",
    ),
    (
        "arguments_key_twice",
        [HI, calling({"function": {"name": "f", "arguments": '{"x": 1, "x": 2}'}})],
        "arguments of a tool call in message 2 of messages: key 'x' occurs twice in one object",
    ),
    (
        "arguments_surrogate",
        [HI, calling({"function": {"name": "f", "arguments": '{"x": "\\ud83d"}'}})],
        "arguments of a tool call in message 2 of messages: half of a surrogate pair (\\ud800-\\udfff) in a string",
    ),
    (
        "arguments_deep",
        [HI, calling({"function": {"name": "f", "arguments": '{"x": ' + "[" * 2000 + "}"}})],
        "arguments of a tool call in message 2 of messages: nested too deeply (more than 100 levels)",
    ),
    ("train_text", [HI, {**HELLO, "train": "no"}], "train of message 2 of messages must be true or false, found 'no'"),
    ("train_number", [HI, {**HELLO, "train": 0}], "train of message 2 of messages must be true or false, found 0"),
    ("weight_half", [HI, {**HELLO, "weight": 0.5}], "weight of message 2 of messages must be 0 or 1, found 0.5"),
    ("weight_boolean", [HI, {**HELLO, "weight": False}], "weight of message 2 of messages must be 0 or 1, found false"),
    ("weight_text", [HI, {**HELLO, "weight": "1"}], "weight of message 2 of messages must be 0 or 1, found '1'"),
    (
        "train_against_weight",
        [HI, {**HELLO, "train": False, "weight": 1}],
        "message 2 of messages has train false and weight 1, which contradict",
    ),
    (
        "train_user",
        [{**HI, "train": True}, HELLO],
        "message 1 of messages is from 'user' and has train true: only the assistant's turns are trained",
    ),
    (
        "weight_user",
        [{**HI, "weight": 1}, HELLO],
        "message 1 of messages is from 'user' and has weight 1: only the assistant's turns are trained",
    ),
]
"""Name, `messages` of a row, and what is wrong with it."""
