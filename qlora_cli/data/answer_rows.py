"""One row per answer: each answer of a conversation becomes the last turn of a row of its own.

Many templates print earlier turns differently from the last one, most often without their thinking. In a row of its own
each answer follows exactly what inference sends before it, and is printed as the model must write it:

    user assistant user assistant  ->  user [assistant]
                                       user assistant user [assistant]      (trained in brackets)

The tokens of a conversation of n exchanges grow with n squared.
"""

from __future__ import annotations

from dataclasses import replace

from qlora_cli.data.example import Conversation, Example
from qlora_cli.data.render.trained_turns import untrained_turns


def rows_per_answer(example: Example) -> list[Example]:
    """The rows of an example; answers that say that they are not trained get none, and plain text stays as it is.

    >>> from qlora_cli.data.example import Place
    >>> turns = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]
    >>> rows = rows_per_answer(Conversation(turns, None, Place("a.jsonl", 1, 1)))
    >>> [len(row.messages) for row in rows], rows[1].messages[1]
    ([2, 4], {'role': 'assistant', 'content': 'assistant', 'train': False})

    Raises:
        RowError: if a message says nothing sensible about its training.
    """
    if not isinstance(example, Conversation):
        return [example]
    messages = example.messages
    untrained = untrained_turns(messages)
    answers = [at for at, message in enumerate(messages) if message["role"] == "assistant" and at not in untrained]
    if len(answers) <= 1 and answers == [len(messages) - 1]:
        return [example]
    read_only = [
        {**{key: value for key, value in message.items() if key != "weight"}, "train": False}
        if message["role"] == "assistant"
        else message
        for message in messages
    ]
    rows = [replace(example, messages=[*read_only[:at], messages[at]]) for at in answers]
    return list(rows) or [example]
