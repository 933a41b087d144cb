"""Flags of other tools: what they say becomes `train`, and what cannot be followed is refused."""

from __future__ import annotations

import pytest

from qlora_cli.data.example import Place
from qlora_cli.data.read.messages import check_message
from qlora_cli.data.rejection import RowError

PLACE = Place("a.jsonl", 3, 3)


def read(role="assistant", **flags):
    return check_message({"role": role, "content": "Hello", **flags}, "message 2", PLACE)


def is_trained(message):
    """As the mask reads it."""
    return message.get("train", message.get("weight", 1)) not in (False, 0)


UNTRAINED = [
    {"train": False},
    {"training": False},
    {"weight": 0},
    {"loss": False},
    {"loss": 0},
    {"loss_weight": 0},
    {"loss_weight": 0.0},
    {"loss_scale": 0},
    {"loss_mask": 0},
    {"masked": True},
    {"mask": True},
    {"ignore": True},
]


@pytest.mark.parametrize("flags", UNTRAINED, ids=str)
@pytest.mark.parametrize("role", ["assistant", "user", "system"])
def test_a_turn_that_says_so_is_not_trained(role, flags):
    message = read(role, **flags)
    assert not is_trained(message)
    assert set(message) <= {"role", "content", "train", "weight"}


@pytest.mark.parametrize(
    "flags",
    [
        {"train": True},
        {"training": True},
        {"weight": 1},
        {"loss": True},
        {"loss": 1},
        {"loss_weight": 1.0},
        {"masked": False},
        {"ignore": False},
        {"train": None, "loss": None},
        {"train_detail": []},
        {"train": True, "weight": 1, "loss": True},
    ],
    ids=str,
)
def test_a_turn_that_does_not_is_trained(flags):
    message = read(**flags)
    assert is_trained(message)
    assert set(message) <= {"role", "content", "train", "weight"}


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        ({"loss_weight": 0.5}, "loss_weight of message 2 must be 0 or 1, found 0.5\nhint: a turn is trained (1)"),
        ({"weight": 2}, "weight of message 2 must be 0 or 1, found 2"),
        ({"weight": True}, "weight of message 2 must be 0 or 1, found true"),
        ({"loss": "no"}, "loss of message 2 must be true, false, 0 or 1, found 'no'"),
        ({"mask": 1}, "mask of message 2 must be true or false, found 1"),
        ({"train": True, "loss": False}, "has train true and loss false, which contradict"),
        ({"masked": True, "weight": 1}, "has masked true and weight 1, which contradict"),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 3, "train": False}]}, "trains parts of a turn"),
    ],
)
def test_what_cannot_be_followed_is_refused(flags, fragment):
    with pytest.raises(RowError) as caught:
        read(**flags)
    assert fragment in str(caught.value)


@pytest.mark.parametrize("flags", [{"train": True}, {"loss": True}, {"loss_weight": 1.0}, {"weight": 1}])
def test_only_the_assistant_may_ask_to_be_trained(flags):
    with pytest.raises(RowError, match="only the assistant's turns are trained"):
        read("user", **flags)
