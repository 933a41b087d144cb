"""No column and no key of a message is without an effect and without a mention."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_cli.data.check import check_data
from qlora_cli.data.example import Place, RawRow
from qlora_cli.data.pipeline import RowPipeline
from qlora_cli.data.raw_batches import RawBatch
from qlora_cli.data.read.error_text import holds_something
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.data.unread import Mentions, UnreadKind
from qlora_cli.recipe.data_schema import DataSection, SourceSection
from tests.data.conftest import make_tokenizer

TEMPLATE = """{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.mood == 'sad' %}:({% endif %}{% for key in ('reasoning_content', 'reasoning', 'thinking') %}{{ m[key] or '' }}
{% endfor %}{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
RENDERER = Renderer(make_tokenizer(TEMPLATE, eos="<|im_end|>"))
DATA = DataSection(train=(SourceSection(path="a.jsonl"),), max_length=4096)
PIPELINE = RowPipeline(DATA, RENDERER)
PLACE = Place("a.jsonl", 1, 1)
HI, HELLO = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def outcome_of(row, format, **keys):
    source = SourceSection(path="a.jsonl", **keys)
    return PIPELINE(RawBatch(0, source, format, [RawRow(PLACE, row)]))


def mentioned(outcome):
    return {(kind, name) for kind, names in outcome.mentions.names.items() for name in names}


ROWS = {
    "alpaca": {"instruction": "a", "output": "b"},
    "messages": {"messages": [HI, HELLO]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    "prompt_completion": {"prompt": "a", "completion": "b"},
    "text": {"text": "a"},
}
KNOWN = [
    "label",
    "weight",
    "train",
    "training",
    "loss",
    "loss_weight",
    "mask",
    "masked",
    "ignore",
    "history",
    "context",
]
KNOWN += [
    "system",
    "system_prompt",
    "functions",
    "function_call",
    "tools",
    "tool_calls",
    "images",
    "chosen",
    "rejected",
]
KNOWN += ["name", "objective", "ranking", "tool_call_id", "input", "instruction", "mood", "reasoning", "id", "score"]
KNOWN += ["train_detail", "role_play", "completion", "text", "prompt", "from", "value", "type", "prefix"]
names = st.sampled_from(KNOWN) | st.text("abcxyz_.[]0 ", min_size=1, max_size=6)
scalars = (
    st.none() | st.booleans() | st.sampled_from([0, 1, 0.5, -3]) | st.sampled_from(["", "sad", "words", "[]", "{"])
)
values = scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.sampled_from(["a", "name", "content"]), scalars)

AGREEING = ("weight", "train", "training", "loss", "loss_weight", "loss_scale", "loss_mask", "masked", "mask", "ignore")
"""Flags of an assistant's turn that may say what holds anyway: that it is trained."""


def agrees(key, value):
    return key in AGREEING and bool(value) is not (key in ("masked", "mask", "ignore"))


def is_empty_list(name, value):
    """Whether a column holds the JSON text of no tools or no earlier turns."""
    return value == "[]" and name in ("tools", "functions", "history")


def says_something(outcome, plain):
    """Whether a row was refused, or trained on other tokens or labels than the plain one."""
    if outcome.rejections:
        return True
    same = (outcome.tokens.input_ids.tolist(), outcome.tokens.labels.tolist())
    return same != (plain.tokens.input_ids.tolist(), plain.tokens.labels.tolist())


@pytest.mark.parametrize("format", ROWS)
@given(names, values)
@settings(deadline=None)
def test_a_column_has_an_effect_or_is_named(format, name, value):
    if name in ROWS[format] or not holds_something(value):
        return
    outcome = outcome_of({**ROWS[format], name: value}, format)
    plain = outcome_of(ROWS[format], format)
    assert (
        says_something(outcome, plain) or (UnreadKind.COLUMNS, name) in mentioned(outcome) or is_empty_list(name, value)
    )


@pytest.mark.parametrize("format", ["messages", "sharegpt"])
@pytest.mark.parametrize("at", [0, 1])
@given(names, values)
@settings(deadline=None)
def test_a_key_of_a_message_has_an_effect_or_is_named(format, at, name, value):
    [column] = ROWS[format]
    turns = [dict(turn) for turn in ROWS[format][column]]
    if name in turns[at] or not holds_something(value) or (at == 1 and agrees(name, value)):
        return
    if at == 0 and name in AGREEING:  # a user's turn is not trained, whatever it says
        return
    turns[at][name] = value
    outcome = outcome_of({column: turns}, format)
    assert says_something(outcome, outcome_of(ROWS[format], format)) or (UnreadKind.KEYS, name) in mentioned(outcome)


@given(st.text("abcxyz_", min_size=1, max_size=6), scalars)
@settings(deadline=None)
def test_a_key_of_a_part_has_an_effect_or_is_named(name, value):
    if name in ("text", "type") or not holds_something(value):
        return
    part = {"type": "text", "text": "Hi", name: value}
    outcome = outcome_of({"messages": [{"role": "user", "content": [part]}, HELLO]}, "messages")
    assert outcome.rejections or (UnreadKind.KEYS, f"content.{name}") in mentioned(outcome)


@given(st.text("abcxyz_", min_size=1, max_size=6), scalars, st.booleans())
@settings(deadline=None)
def test_a_key_of_a_call_has_an_effect_or_is_named(name, value, is_inside):
    if not holds_something(value):
        return
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    plain = outcome_of({"messages": [HI, {"role": "assistant", "tool_calls": [call]}]}, "messages")
    call = {**call, "function": {**call["function"], name: value}} if is_inside else {**call, name: value}
    outcome = outcome_of({"messages": [HI, {"role": "assistant", "tool_calls": [call]}]}, "messages")
    assert says_something(outcome, plain) or (UnreadKind.KEYS, f"tool_calls.{name}") in mentioned(outcome)


def test_a_key_that_the_template_prints_for_some_values_is_told_for_the_others():
    sad, glad = ({"messages": [{**HI, "mood": mood}, HELLO]} for mood in ("sad", "glad"))
    assert mentioned(outcome_of(glad, "messages")) == {(UnreadKind.KEYS, "mood")}
    assert mentioned(outcome_of(sad, "messages")) == set()
    assert mentioned(outcome_of({"messages": [{**HI, "mood": "sad", "other": 1}, HELLO]}, "messages")) == {
        (UnreadKind.KEYS, "other")
    }


def test_nulls_that_are_taken_out_are_told():
    call = {"function": {"name": "f", "arguments": {"city": "Bonn", "x": None}}}
    row = {"messages": [HI, {"role": "assistant", "content": None, "tool_calls": [call]}], "tools": [{"name": None}]}
    assert mentioned(outcome_of(row, "messages")) == {(UnreadKind.NULLS, "tool_calls"), (UnreadKind.NULLS, "tools")}


def test_ignored_columns_and_keys_are_not_told():
    row = {"messages": [{**HI, "score": 3}, HELLO], "id": 7, "images": ["a.jpg"]}
    assert outcome_of(row, "messages").rejections
    outcome = outcome_of(row, "messages", ignore=("id", "images", "score"))
    assert not outcome.rejections
    assert not mentioned(outcome)


def test_counts_are_of_rows_and_names_have_an_end():
    mentions = Mentions()
    for number in range(2000):
        mentions.add(
            [(UnreadKind.COLUMNS, "id"), (UnreadKind.COLUMNS, "id"), (UnreadKind.COLUMNS, f"key{number}")], PLACE
        )
    [finding] = mentions.findings()
    assert finding.num_rows == 2000
    assert finding.text.startswith("id (2,000 rows), ")
    assert finding.text.endswith("and at least 980 more")


def test_the_report_lists_what_is_not_read_with_its_count(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"text": f"text number {n}", "url": "x", **({"lang": "en"} if n % 2 else {})} for n in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataSection(train=(SourceSection(path=str(path)),), max_length=64)
    [finding] = check_data(data, RENDERER, seed=1).findings
    assert (finding.what, finding.verdict, finding.num_rows) == ("columns that are not read", "noted", 9)
    assert finding.text == "url (9 rows), lang (4 rows)"


def test_a_leave_out_that_matches_nothing_is_told(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "words", "label": false}\n{"text": "more words", "label": true}\n')
    for leave_out, what in (({"label": False}, "left out by leave_out"), ({"lable": False}, "leave_out that matches")):
        source = SourceSection(path=str(path), leave_out=leave_out, ignore=("label",))
        report = check_data(DataSection(train=(source,), max_length=64), RENDERER, seed=1)
        assert any(finding.what.startswith(what) for finding in report.findings)
