"""What a message says about itself is checked: whether it is trained."""

from __future__ import annotations

import pytest

from qlora_cli.data.example import Place
from qlora_cli.data.read.formats import to_example
from qlora_cli.data.read.messages import check_messages
from qlora_cli.data.rejection import RejectionReason, RowError

PLACE = Place("a.jsonl", 3, 3)
HI = {"role": "user", "content": "Hi"}
HELLO = {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    "keys",
    [
        {"train": True},
        {"train": False},
        {"weight": 0},
        {"weight": 1},
        {"weight": 1.0},
        {"train": False, "weight": 0},
        {"train": True, "weight": 1},
    ],
)
def test_train_and_weight_of_an_answer_are_kept(keys):
    assert check_messages([HI, {**HELLO, **keys}], "messages", PLACE) == [HI, {**HELLO, **keys}]


def test_a_null_says_nothing():
    assert check_messages([{**HI, "train": None}, {**HELLO, "weight": None}], "messages", PLACE) == [HI, HELLO]


@pytest.mark.parametrize("keys", [{"train": False}, {"weight": 0}])
def test_a_turn_of_someone_else_may_say_that_it_is_not_trained(keys):
    assert check_messages([{**HI, **keys}, HELLO], "messages", PLACE)[0] == {**HI, **keys}


@pytest.mark.parametrize(
    ("message", "fragment"),
    [
        ({**HELLO, "train": "yes"}, "train of message 1 of messages must be true or false, found 'yes'"),
        ({**HELLO, "train": 1}, "train of message 1 of messages must be true or false, found 1"),
        ({**HELLO, "weight": 0.5}, "weight of message 1 of messages must be 0 or 1, found 0.5"),
        ({**HELLO, "weight": True}, "weight of message 1 of messages must be 0 or 1, found true"),
        ({**HELLO, "weight": "1"}, "weight of message 1 of messages must be 0 or 1, found '1'"),
        ({**HELLO, "weight": []}, "weight of message 1 of messages must be 0 or 1, found []"),
        ({**HELLO, "train": True, "weight": 0}, "message 1 of messages has train true and weight 0, which contradict"),
        ({**HI, "train": True}, "message 1 of messages is from 'user' and has train true"),
        ({**HI, "weight": 1}, "message 1 of messages is from 'user' and has weight 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(message, fragment):
    with pytest.raises(RowError) as caught:
        check_messages([message], "messages", PLACE)
    assert caught.value.cause is RejectionReason.FORMAT
    assert caught.value.problems[0].place == "a.jsonl:3"
    assert fragment in caught.value.problems[0].text


def test_sharegpt_turns_say_it_too():
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello", "train": False, "weight": 0}]
    messages = to_example({"conversations": turns}, PLACE, "sharegpt", {}).messages
    assert messages == [HI, {**HELLO, "train": False, "weight": 0}]
