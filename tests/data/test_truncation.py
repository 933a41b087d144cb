"""Cuts: what is left fits, and the last answer is whole, with the token that ends its turn, and trained."""

from __future__ import annotations

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from qlora_cli.constants import IGNORE_INDEX
from qlora_cli.data.example import Conversation, Place, PlainText
from qlora_cli.data.read.formats import to_example
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.data.truncation import MARK, MAX_RENDERINGS, NUM_KEPT_CHARS, Cutter
from tests.data.conftest import make_tokenizer

CHATML = """{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}
{%- if m['tool_calls'] %}{{ m['tool_calls'] | tojson }}{% else %}{{ m['content'] }}{% endif %}
{{- '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
PLACE = Place("a.jsonl", 1, 1)
TOKENIZER = make_tokenizer(CHATML)
RENDERER = Renderer(TOKENIZER)
PARAGRAPH = "The committee met in spring and put the question off until the autumn, when nobody came. "


def conversation(*turns):
    return Conversation([{"role": role, "content": content} for role, content in turns], None, PLACE)


def trained(row):
    return [label for label in row.labels if label != IGNORE_INDEX]


def whole(example):
    [row] = RENDERER.render([example])
    return row


def cut(example, max_length, how="cut_prompt"):
    return Cutter(RENDERER, max_length, how).cut(example)


def contents(example):
    return [message.get("content") for message in example.messages]


LONG_QUESTION = conversation(
    ("system", "Be brief."),
    ("user", "Sum this up:\n" + PARAGRAPH * 40 + "\nIn ten words, please."),
    ("assistant", "Postponed in spring, forgotten in autumn."),
)


def test_the_middle_of_the_longest_text_goes_and_leaves_a_mark():
    example, row = cut(LONG_QUESTION, 300)
    system, question, answer = contents(example)
    before, after = question.split(MARK)
    original = contents(LONG_QUESTION)
    assert (system, answer) == (original[0], original[2])
    assert original[1].startswith(before)
    assert original[1].endswith(after)
    assert abs(len(before) - len(after)) <= 1
    assert row == whole(example)


@pytest.mark.parametrize("max_length", [160, 300, 1000])
def test_as_much_stays_as_fits_to_a_hundredth(max_length):
    _, row = cut(LONG_QUESTION, max_length)
    assert 0.98 * max_length - 2 <= len(row.input_ids) <= max_length


def test_all_that_was_trained_still_is():
    _, row = cut(LONG_QUESTION, 200)
    assert trained(row) == trained(whole(LONG_QUESTION))
    assert TOKENIZER.decode(row.input_ids).endswith("forgotten in autumn.<|im_end|>\n")


def test_what_is_not_text_of_a_turn_survives_a_cut():
    messages = [
        {"role": "user", "content": "Look it up."},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]},
        {"role": "tool", "name": "f", "content": PARAGRAPH * 30},
        {"role": "assistant", "content": "Done."},
    ]
    tools = [{"type": "function", "function": {"name": "f"}}]
    example, row = cut(Conversation(messages, tools, PLACE), 250)
    assert example.tools == tools
    assert example.messages[:2] + example.messages[3:] == messages[:2] + messages[3:]
    assert MARK in example.messages[2]["content"]
    assert example.messages[2]["name"] == "f"
    assert trained(row) == trained(whole(Conversation(messages, tools, PLACE)))


def test_the_next_longest_text_follows_where_one_is_not_enough():
    example, _ = cut(conversation(("system", PARAGRAPH * 9), ("user", PARAGRAPH * 8), ("assistant", "Yes.")), 300)
    system, question, _ = contents(example)
    assert len(system) == NUM_KEPT_CHARS + len(MARK)
    assert NUM_KEPT_CHARS < len(question.replace(MARK, "")) < len(PARAGRAPH * 8)


def test_a_long_answer_is_not_cut():
    assert cut(conversation(("user", PARAGRAPH * 9), ("assistant", PARAGRAPH * 9)), 200) is None


def test_a_short_prompt_is_not_cut_away():
    assert cut(conversation(("user", "x" * NUM_KEPT_CHARS), ("assistant", "Yes. " * 5)), 60) is None


def test_an_alpaca_row_is_cut_in_its_longer_part_and_stays_one():
    row = {"instruction": "Sum this up.", "input": PARAGRAPH * 30, "output": "Put off."}
    example, _ = cut(to_example(row, PLACE, "alpaca", {}), 250)
    user = example.messages[0]
    assert user["instruction"] == "Sum this up."
    assert MARK in user["input"]
    assert user["content"] == f"{user['instruction']}\n\n{user['input']}"


def test_a_prompt_of_plain_text_is_cut_and_its_completion_is_not():
    example = PlainText("Q: " + PARAGRAPH * 30 + "\nA:", " Put off.", PLACE)
    short, row = cut(example, 200)
    assert short.prompt.startswith("Q: The")
    assert short.prompt.endswith("\nA:")
    assert MARK in short.prompt
    assert short.completion == example.completion
    assert trained(row) == trained(whole(example))


def test_text_without_a_prompt_cannot_be_cut():
    assert cut(PlainText("", PARAGRAPH * 30, PLACE), 100) is None


def test_a_few_renderings_find_the_cut():
    class Counting(Renderer):
        num_rendered = 0

        def render_each(self, examples):
            self.num_rendered += 1
            return super().render_each(examples)

    counting = Counting(TOKENIZER)
    example, row = Cutter(counting, 2000, "cut_prompt").cut(
        conversation(("user", PARAGRAPH * 900), ("assistant", "No."))
    )
    assert len(row.input_ids) >= 1960
    assert counting.num_rendered <= 6 < MAX_RENDERINGS
    assert len(contents(example)[0]) < 20_000


def exchanges(*numbers, system=True):
    turns = [("system", "Be brief.")] if system else []
    for number in numbers:
        turns += [("user", f"Question {number}?"), ("assistant", f"Answer {number}.")]
    return conversation(*turns)


def fitting(example):
    """A `max_length` that this row, and none that is longer, fits."""
    return len(whole(example).input_ids)


@pytest.mark.parametrize("kept", [(1, 3, 4, 5, 6), (1, 5, 6), (1, 6), (6,)])
def test_the_oldest_exchanges_after_the_first_go_first_and_the_last_stays(kept):
    example, row = cut(exchanges(*range(1, 7)), fitting(exchanges(*kept)), "cut_middle_turns")
    assert example == exchanges(*kept)
    assert row == whole(exchanges(*kept))


def test_without_a_system_turn_the_same_exchanges_go():
    short = exchanges(1, 4, system=False)
    assert cut(exchanges(1, 2, 3, 4, system=False), fitting(short), "cut_middle_turns")[0] == short


def test_a_call_and_its_result_go_with_the_question_they_belong_to():
    def asked(number):
        return [
            {"role": "user", "content": f"Question {number}?"},
            {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]},
            {"role": "tool", "content": f"Result {number}"},
            {"role": "assistant", "content": f"Answer {number}."},
        ]

    long = Conversation(asked(1) + asked(2) + asked(3), None, PLACE)
    short = Conversation(asked(1) + asked(3), None, PLACE)
    assert cut(long, fitting(short), "cut_middle_turns")[0] == short
    assert cut(long, fitting(Conversation(asked(3), None, PLACE)), "cut_middle_turns")[0].messages == asked(3)


def test_a_last_exchange_that_does_not_fit_alone_is_no_row():
    assert cut(exchanges(1, 2, 3), fitting(exchanges(3)) - 1, "cut_middle_turns") is None


def test_a_single_exchange_has_no_middle():
    assert cut(exchanges(1), 8, "cut_middle_turns") is None
    assert cut(PlainText("a", "b", PLACE), 1, "cut_middle_turns") is None


def test_a_row_that_the_template_refuses_once_it_is_cut_is_no_row():
    strict = "{% if messages[0].content == 'Question 3?' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    renderer = Renderer(make_tokenizer(strict))
    example = exchanges(1, 2, 3, system=False)
    max_length = fitting(exchanges(3, system=False))
    assert Cutter(renderer, max_length, "cut_middle_turns").cut(example) is None


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20).filter(str.strip)
QUESTION = st.builds(lambda text, length: (text * length)[:length], TEXT, st.integers(1, 900))
TURNS = st.lists(st.tuples(QUESTION, TEXT), min_size=1, max_size=6)


@settings(deadline=None, max_examples=60)
@given(TURNS, st.booleans(), st.sampled_from(["cut_prompt", "cut_middle_turns"]), st.floats(0.2, 0.99))
def test_a_cut_row_fits_and_ends_with_the_whole_answer_trained(turns, has_system, how, share):
    both = [turn for question, answer in turns for turn in (("user", question), ("assistant", answer))]
    example = conversation(*([("system", "Be brief.")] if has_system else []), *both)
    max_length = int(share * len(whole(example).input_ids))
    done = cut(example, max_length, how)
    if done is None:
        reject()
    short, row = done
    assert len(row.input_ids) <= max_length
    assert row == whole(short)
    last_answer = trained(whole(conversation(*both[-2:])))
    assert row.input_ids[-len(last_answer) :] == row.labels[-len(last_answer) :] == last_answer
    assert TOKENIZER.convert_tokens_to_ids("<|im_end|>") in last_answer
    assert short.messages[-1] == example.messages[-1]
    kept_answers = [message["content"] for message in short.messages if message["role"] == "assistant"]
    answers = [answer for _, answer in turns]
    if how == "cut_prompt":
        assert kept_answers == answers
        assert trained(row) == trained(whole(example))
    else:
        assert [message for message in short.messages if message not in example.messages] == []
        assert kept_answers[-1] == answers[-1]
