"""Which turns are trained: `train_on`, and what a message says of itself."""

from __future__ import annotations

import pytest

from qlora_cli.constants import IGNORE_INDEX
from qlora_cli.data.example import Conversation, Place, PlainText
from qlora_cli.data.rejection import RejectionReason, RowError
from qlora_cli.data.render.renderer import Renderer

PLACE = Place("test.jsonl", 1, 1)
CHATML = """{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
MARKED = """{% for m in messages %}<|im_start|>{{ m['role'] }}
{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>
{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>
{% endif %}{% endfor %}"""
DIALOGUE = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Name?"},
    {"role": "assistant", "content": "Ada"},
]
BOTH = ["Hello<|im_end|>\n", "Ada<|im_end|>\n"]


def row_of(renderer, messages):
    [row] = renderer.render_each([Conversation(messages, None, PLACE)])
    return row


def trained(tokenizer_for, *, template=CHATML, train_on="assistant", **marks):
    """Trained stretches of the dialogue, with further keys in message `at`."""
    tokenizer = tokenizer_for(template)
    at = marks.pop("at", 1)
    messages = [{**message, **(marks if index == at else {})} for index, message in enumerate(DIALOGUE)]
    row = row_of(Renderer(tokenizer, train_on=train_on), messages)
    if isinstance(row, RowError):
        return row
    assert "train" not in tokenizer.decode(row.input_ids)
    stretches = [[]]
    for label in row.labels:
        if label == IGNORE_INDEX and stretches[-1]:
            stretches.append([])
        elif label != IGNORE_INDEX:
            stretches[-1].append(label)
    return [tokenizer.decode(stretch) for stretch in stretches if stretch]


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["from the template", "generation blocks"])
@pytest.mark.parametrize(
    ("marks", "stretches"),
    [
        ({}, BOTH),
        ({"train": False}, BOTH[1:]),
        ({"weight": 0}, BOTH[1:]),
        ({"train": False, "weight": 0}, BOTH[1:]),
        ({"train": False, "at": 3}, BOTH[:1]),
        ({"train": True}, BOTH),
        ({"weight": 1.0}, BOTH),
        ({"train": None, "weight": None}, BOTH),
        ({"train": False, "at": 0}, BOTH),
    ],
)
def test_a_turn_that_says_so_is_read_and_not_trained(template, marks, stretches, tokenizer_for):
    assert trained(tokenizer_for, template=template, **marks) == stretches


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["from the template", "generation blocks"])
def test_last_turn_trains_the_last_answer_alone(template, tokenizer_for):
    assert trained(tokenizer_for, template=template, train_on="last_turn") == BOTH[1:]
    assert trained(tokenizer_for, template=template, train_on="last_turn", train=False, at=3) == []


def test_all_trains_every_token_but_the_first_and_what_says_no(tokenizer_for):
    header = "user\nHi<|im_end|>\n<|im_start|>assistant\n"
    rest = "<|im_start|>user\nName?<|im_end|>\n<|im_start|>assistant\nAda<|im_end|>\n"
    assert trained(tokenizer_for, train_on="all") == [header + BOTH[0] + rest]
    assert trained(tokenizer_for, train_on="all", train=False) == [header, rest]


@pytest.mark.parametrize(("train_on", "words"), [("assistant", "A</s>"), ("last_turn", "A</s>"), ("all", ": A</s>")])
def test_of_plain_text_the_completion_or_all_is_trained(train_on, words, tokenizer_for):
    tokenizer = tokenizer_for()
    [row] = Renderer(tokenizer, train_on=train_on).render([PlainText("Q: ", "A", PLACE)])
    assert tokenizer.decode([label for label in row.labels if label != IGNORE_INDEX]) == words


def test_what_is_trained_changes_no_token(tokenizer_for):
    tokenizer = tokenizer_for(CHATML)
    ids = {tuple(row_of(Renderer(tokenizer, train_on=on), DIALOGUE).input_ids) for on in ("assistant", "all")}
    assert len(ids) == 1


@pytest.mark.parametrize(
    ("marks", "text"),
    [
        ({"weight": 0.5}, "`weight` of message 2 is 0.5, not 0 or 1"),
        ({"weight": "1"}, "`weight` of message 2 is '1', not 0 or 1"),
        ({"weight": True}, "`weight` of message 2 is True, not 0 or 1"),
        ({"train": "false"}, "`train` of message 2 is 'false'"),
        ({"train": 1}, "`train` of message 2 is 1"),
        ({"train": True, "weight": 0}, "message 2 has `train: true` and `weight: 0`, which disagree"),
        ({"train": True, "at": 0}, "message 1 is from 'user' and asks to be trained"),
        ({"weight": 1, "at": 2}, "message 3 is from 'user' and asks to be trained"),
    ],
)
def test_a_choice_that_is_none_is_a_fault_of_the_row(marks, text, tokenizer_for):
    fault = trained(tokenizer_for, **marks)
    assert fault.cause is RejectionReason.FORMAT
    [problem] = fault.problems
    assert (problem.text, problem.place) == (text, "test.jsonl:1")
    assert problem.hint


def test_blocks_outside_of_the_messages_cannot_be_told_apart(tokenizer_for):
    template = "{% generation %}{% for m in messages %}{{ m.content }}{% endfor %}{% endgeneration %}"
    fault = trained(tokenizer_for, template="Chat: " + template, train=False)
    assert fault.cause is RejectionReason.TEMPLATE
    assert "which message" in str(fault)
