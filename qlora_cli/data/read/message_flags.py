"""Flags of a message that say whether it is trained, as several tools name them, turned into the key `train`.

axolotl writes `train` or `training`, OpenAI `weight`, ms-swift `loss` and `loss_scale`, LLaMA-Factory `loss_weight`;
other files say `masked: true`. A value that a mask of yes and no cannot follow, such as a weight of 0.5, is refused.
"""

from __future__ import annotations

from typing import Any

from qlora_cli.data.example import Message, Place
from qlora_cli.data.read.error_text import holds_something, kind_of, row_error, shown

OWN_FLAGS = ("train", "weight")
"""Stay in the message as they are written; the others become `train`."""

_YES_OR_NO = {"train": "true or false", "training": "true or false"}
_YES_OR_NO |= dict.fromkeys(("masked", "mask", "ignore"), "true or false")
_ZERO_OR_ONE = dict.fromkeys(("weight", "loss_weight", "loss_scale", "loss_mask"), "0 or 1")
_ALLOWED = {**_YES_OR_NO, **_ZERO_OR_ONE, "loss": "true, false, 0 or 1"}
"""Flag -> the values that it may have."""

_HIDING = frozenset({"masked", "mask", "ignore"})
"""Flags whose `true` takes a message out of training; their `false` says nothing."""

_PARTS_OF_A_TURN = ("train_detail", "training_detail")
"""Lists of character ranges of one turn, as axolotl reads them."""

FLAGS = frozenset({*_ALLOWED, *_PARTS_OF_A_TURN})
"""Every key of a message that says whether it is trained."""


def read_flags(message: Message, name: str, place: Place) -> None:
    """Bring the flags of a message into `train`; `train` and `weight` stay as written.

    Args:
        message: changed in place; a flag that is null says nothing and is taken out.
        name: of the message, for errors.
        place: of its row.

    Raises:
        RowError: a value that is neither yes nor no, flags that contradict each other, or a message that is not the
            assistant's and asks to be trained.
    """
    said: dict[str, bool] = {}
    for key in [key for key in message if key in FLAGS]:
        value = message[key]
        if value is None or (key in _PARTS_OF_A_TURN and not holds_something(value)):
            del message[key]
            continue
        is_trained = _is_trained(key, value, name, place)
        if is_trained is not None:
            said[key] = is_trained
    if len(set(said.values())) > 1:
        first = next(iter(said))
        second = next(key for key in said if said[key] != said[first])
        raise row_error(
            f"{name} has {first} {shown(message[first])} and {second} {shown(message[second])}, which contradict",
            place,
            "leave one of them out",
        )
    if message["role"] != "assistant" and True in said.values():
        key = next(iter(said))
        raise row_error(
            f"{name} is from '{message['role']}' and has {key} {shown(message[key])}: only the assistant's "
            "turns are trained",
            place,
            f"leave `{key}` out, or set `data.train_on: all` to train everything",
        )
    _keep_own(message, said)


def _is_trained(key: str, value: Any, name: str, place: Place) -> bool | None:
    """Meaning of one flag; None where it has none."""
    if key in _PARTS_OF_A_TURN:
        text = f"{key} of {name} trains parts of a turn, and here a turn is trained whole or not at all"
        raise row_error(text, place, "split the turn, or say `train: true` or `train: false` instead")
    is_boolean = isinstance(value, bool)
    fits = is_boolean if key in _YES_OR_NO else (key == "loss" or not is_boolean) and value in (0, 1)
    if not fits:
        is_number = isinstance(value, int | float) and not is_boolean and key not in _YES_OR_NO
        hint = "a turn is trained (1) or only read (0); for weights between, repeat rows or sources"
        raise row_error(
            f"{key} of {name} must be {_ALLOWED[key]}, found {shown(value) if value is not None else kind_of(value)}",
            place,
            hint if is_number else "",
        )
    if key in _HIDING:
        return False if value else None
    return bool(value)


def _keep_own(message: Message, said: dict[str, bool]) -> None:
    """Take the flags of other tools out, and say `train` in their place."""
    foreign = [key for key in message if key in FLAGS and key not in OWN_FLAGS]
    for key in foreign:
        del message[key]
    if foreign and said and not any(key in message for key in OWN_FLAGS):
        message["train"] = next(iter(said.values()))
