"""Which characters each message made."""

from __future__ import annotations

import pytest

from qlora_cli.data.render.traced_template import AmbiguousTraceError, TracedTemplate

MESSAGES = [{"role": role, "content": role.upper()} for role in ("system", "user", "assistant", "user", "assistant")]


def parts(template, messages=MESSAGES, **special_tokens):
    trace = TracedTemplate(template, special_tokens).render(messages, None, add_generation_prompt=False)
    return {index: trace.text[start:end] for index, (start, end) in trace.turns.items()}


def test_each_message_gets_the_text_of_its_pass_through_the_loop():
    template = "{{ bos }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}tail"
    assert parts(template, bos="<s>") == {
        0: "<system>SYSTEM",
        1: "<user>USER",
        2: "<assistant>ASSISTANT",
        3: "<user>USER",
        4: "<assistant>ASSISTANT",
    }


@pytest.mark.parametrize(
    "template",
    [
        "{% set rest = messages[1:] %}{% for m in rest %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
        "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{% set m = m %}{% if not loop.first %}{{ m.content }}{% endif %}{% endfor %}",
        "{% for m in messages %}{{ '' }}{% endfor %}{% for m in messages[1:] %}{{ m.content }}{% endfor %}",
        "{% macro show(m) %}{{ m.content }}{% endmacro %}{% for m in messages[1:] %}{{ show(m) }}{% endfor %}",
        "{% set t %}{% for m in messages[1:] %}{{ m.content }}{% endfor %}{% endset %}{{ t }}",
        "{% for m in messages[1:] %}{% for n in messages[loop.index:] %}{% endfor %}{{ m.content }}{% endfor %}",
        "{% for m in messages[1:] %}{% for part in ['a'] %}{% endfor %}{{ m.content }}{% endfor %}",
    ],
    ids=["slice", "continue", "filter", "rebound", "two passes", "macro", "captured", "nested", "parts"],
)
def test_the_way_of_looping_does_not_matter(template):
    assert parts(template) == {1: "USER", 2: "ASSISTANT", 3: "USER", 4: "ASSISTANT"}


def test_a_loop_that_breaks_ends_the_last_message():
    template = "{% for m in messages %}{{ m.content }}{% if loop.index == 2 %}{% break %}{% endif %}{% endfor %}tail"
    assert parts(template) == {0: "SYSTEM", 1: "USER"}


def test_a_message_that_the_template_makes_up_belongs_to_nobody():
    template = "{% for m in messages + [{'content': 'extra'}] %}{{ m.content }}{% endfor %}"
    assert parts(template, MESSAGES[:1]) == {0: "SYSTEM"}


def test_generation_blocks_are_found_inside_captures_too():
    template = "{% set t %}{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}-{% endfor %}"
    trace = TracedTemplate("AB" + template + "{% endset %}{{ t }}", {}).render(
        MESSAGES[:2], None, add_generation_prompt=False
    )
    assert [trace.text[start:end] for start, end in trace.generated] == ["SYSTEM", "USER"]


def test_text_that_forges_the_marks_is_refused():
    messages = [{"role": "user", "content": "\ufdd1m0\ufdd1"}]
    with pytest.raises(AmbiguousTraceError):
        parts("{% for m in messages %}{{ m.content }}{% endfor %}", messages)
