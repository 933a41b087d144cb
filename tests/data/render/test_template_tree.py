"""What the parsed template proves about every conversation."""

from __future__ import annotations

import pytest
from jinja2 import Environment

from qlora_cli.data.render.template_tree import loop_before_constant_tail, markup_read

LOOP = "{% for m in messages %}{{ m.content }}{% endfor %}"


def parse(source):
    return Environment().parse(source)


@pytest.mark.parametrize(
    "tail",
    [
        "",
        "<|assistant|>",
        "{{ '<|assistant|>' + eos_token }}",
        "{% if add_generation_prompt %}A{% elif think is defined and think %}B{% else %}{{ bos_token }}{% endif %}",
        "{{ 'A' if add_generation_prompt and not thinking else 'B' ~ 'C' }}",
    ],
)
def test_a_tail_of_constants_and_settings_is_constant(tail):
    assert loop_before_constant_tail(parse(LOOP + tail)) == 0


@pytest.mark.parametrize(
    "source",
    [
        LOOP + "{{ messages[-1].content }}",
        LOOP + "{% if tools %}A{% endif %}",
        LOOP + "{{ namespace().x }}",
        LOOP + "{{ strftime_now('%d') }}",
        LOOP + "{{ bos_token | upper }}",
        "{% set name = messages[0].role %}" + LOOP + "{{ name }}",
        "{% set ns = namespace(x=1) %}" + LOOP + "{% if ns.x %}A{% endif %}",
        "{% macro show() %}{{ messages }}{% endmacro %}" + LOOP + "{{ show }}",
        "{% for bos in messages %}{% endfor %}" + LOOP + "{{ bos }}",
        "{% if messages %}" + LOOP + "{% endif %}A",
        "no loop",
    ],
)
def test_a_tail_that_may_read_the_conversation_is_not(source):
    assert loop_before_constant_tail(parse(source)) is None


def test_loops_count_in_the_order_of_the_text():
    source = "{% for a in x %}{% for b in a %}{% endfor %}{% endfor %}{% if x %}{% for c in x %}{% endfor %}{% endif %}"
    assert loop_before_constant_tail(parse(source + LOOP + "tail")) == 3


@pytest.mark.parametrize(
    "source",
    [
        "{% if '</think>' in m.content %}{% endif %}",
        "{% if '</think>' not in m.content %}{% endif %}",
        "{{ m.content.split('</think>\n')[-1] }}",
        "{{ m.content | replace('</think>', '') }}",
        "{% set end = '</think>' %}{{ m.content.split(end) }}",
    ],
)
def test_words_that_the_template_looks_for_are_read(source):
    assert "</think>" in markup_read(parse(source))


@pytest.mark.parametrize("source", ["{{ '<|im_end|>' }}", "{{ '<|im_end|>' + m.content }}", "<|im_end|>"])
def test_words_that_it_only_prints_are_not(source):
    assert markup_read(parse(source)) == frozenset()
