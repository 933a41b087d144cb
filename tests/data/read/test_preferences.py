"""Preference files: the hint's mapping reads the chosen answer, and names what is not used."""

from __future__ import annotations

import re

import pytest

from qlora_cli.data.example import Conversation, Place
from qlora_cli.data.read.formats import resolve_format, to_example
from qlora_cli.errors import DataError

PLACE = Place("a.jsonl", 3, 3)
HI = {"role": "user", "content": "Hi"}
GOOD, BAD = ({"role": "assistant", "content": content} for content in ("good", "bad"))
HUMAN, GPT, WORSE = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "good"}, {"from": "gpt", "value": "bad"}

FILES = {
    "trl_conversational": {"prompt": [HI], "chosen": [GOOD], "rejected": [BAD]},
    "trl_implicit_prompt": {"chosen": [HI, GOOD], "rejected": [HI, BAD]},
    "trl_standard": {"prompt": "Hi", "chosen": "good", "rejected": "bad"},
    "ultrafeedback": {"prompt": "Hi", "chosen": [HI, GOOD], "rejected": [HI, BAD], "score_chosen": 8.0},
    "intel_orca": {"system": "", "question": "Hi", "chosen": "good", "rejected": "bad"},
    "llamafactory_alpaca": {"instruction": "Hi", "input": "", "chosen": "good", "rejected": "bad"},
    "llamafactory_sharegpt": {"conversations": [HUMAN], "chosen": GPT, "rejected": WORSE},
    "llamafactory_v1": {"chosen_messages": [HI, GOOD], "rejected_messages": [HI, BAD]},
    "sharegpt_whole": {"chosen": [HUMAN, GPT], "rejected": [HUMAN, WORSE]},
    "hh_rlhf": {"chosen": "\n\nHuman: Hi\n\nAssistant: good", "rejected": "\n\nHuman: Hi\n\nAssistant: bad"},
    "messages_and_prompt": {"messages": [HI], "chosen": "good", "rejected": "bad"},
}


def read(row, columns):
    return to_example(row, PLACE, resolve_format(None, columns, row, PLACE), columns)


@pytest.mark.parametrize("name", FILES)
def test_the_hint_of_a_preference_file_reads_the_chosen_answer(name):
    row = FILES[name]
    with pytest.raises(DataError) as caught:
        read(row, {})
    hint = caught.value.problems[0].hint
    columns = dict(pair.split(": ") for pair in re.search(r"columns: \{(.+?)\}", hint).group(1).split(", "))
    example = read(row, columns)
    trained = example.messages[-1]["content"] if isinstance(example, Conversation) else example.completion
    assert "good" in trained
    assert "bad" not in str(example)
    assert re.search(r"`rejected\w*` is not used then", hint)
