"""Choice of the trained assistant turns: a message's own `train: false` or `weight: 0`, and `data.train_on`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from qlora_cli.data.example import Message
from qlora_cli.data.rejection import RejectionReason, RowError
from qlora_cli.data.render.mask import AnswerSpan

TrainOn = Literal["assistant", "last_turn", "all"]

CHOICE_KEYS = ("train", "weight")
"""Keys of a message that say whether it is trained; the template never sees them."""

_WEIGHT_HINT = "a turn is trained (weight 1) or only read (weight 0); for weights between repeat rows or sources"


def has_choice(message: Message) -> bool:
    """Whether a message says itself whether it is trained."""
    return "train" in message or "weight" in message


def without_choice(messages: Sequence[Message]) -> list[Message]:
    """The messages as templates may read them."""
    return [
        {key: value for key, value in message.items() if key not in CHOICE_KEYS} if has_choice(message) else message
        for message in messages
    ]


def untrained_turns(messages: Sequence[Message]) -> frozenset[int]:
    """Indices of the messages that say that they are not trained.

    >>> sorted(untrained_turns([{"role": "assistant", "weight": 0}, {"role": "user"}, {"role": "assistant"}]))
    [0]

    Raises:
        RowError: a value that says neither yes nor no, two that disagree, or training of another's words.
    """
    untrained = [
        index
        for index, message in enumerate(messages)
        if has_choice(message) and _is_trained(message, index + 1) is False
    ]
    return frozenset(untrained)


def _is_trained(message: Message, number: int) -> bool | None:
    """A message's own flag; None where it has none."""
    train, weight = message.get("train"), message.get("weight")
    if train is not None and not isinstance(train, bool):
        raise RowError(RejectionReason.FORMAT, f"`train` of message {number} is {train!r}", hint="write true or false")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise RowError(
            RejectionReason.FORMAT, f"`weight` of message {number} is {weight!r}, not 0 or 1", hint=_WEIGHT_HINT
        )
    if train is not None and weight is not None and train != bool(weight):
        text = f"message {number} has `train: {str(train).lower()}` and `weight: {weight}`, which disagree"
        raise RowError(RejectionReason.FORMAT, text, hint="keep one of the two")
    says = train if train is not None else None if weight is None else bool(weight)
    if says and message["role"] != "assistant":
        raise RowError(
            RejectionReason.FORMAT,
            f"message {number} is from '{message['role']}' and asks to be trained",
            hint="only the assistant's turns are; `data.train_on: all` trains every token",
        )
    return says


def choose(answers: Sequence[AnswerSpan], untrained: frozenset[int], train_on: TrainOn) -> list[bool]:
    """Whether each answer is trained.

    Raises:
        RowError: if the template does not show whose an answer is.
    """
    if (untrained or train_on == "last_turn") and any(answer.turn is None for answer in answers):
        raise RowError(
            RejectionReason.TEMPLATE,
            "the chat template does not show which message its {% generation %} blocks belong to, "
            "so single turns cannot be left out",
            hint="put the blocks inside the loop over the messages, or train every turn",
        )
    if not untrained and train_on != "last_turn":
        return [True] * len(answers)
    last = answers[-1].turn if answers else None
    return [answer.turn not in untrained and (train_on != "last_turn" or answer.turn == last) for answer in answers]
