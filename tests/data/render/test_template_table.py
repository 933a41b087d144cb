"""No text of a row is lost in silence, and no answer is trained from elsewhere than its prompt's end, on any template.

The table of docs/templates.md is made by `docs/write_templates.py` with the same code; each line is held against it.
"""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_cli.data.render.renderer import Renderer
from tests.data.conftest import make_tokenizer
from tests.data.render.content_kinds import KINDS, Case, Maker, make_case
from tests.data.render.template_table import judge, table_row
from tests.data.render.templates import GROUPS, OF_TRL, SHAPES, TEMPLATES

SOME_QUICK = [pytest.param(name, marks=pytest.mark.slow if at % 8 else ()) for at, name in enumerate(TEMPLATES)]
"""Every template; every eighth is in `make test-quick` too."""

PAGE = (Path(__file__).parents[3] / "docs" / "templates.md").read_text("utf-8")


def test_there_are_sixty_templates_and_thirty_shapes_of_our_own():
    assert len(TEMPLATES) >= 60
    assert len(SHAPES) >= 30
    assert len(TEMPLATES) == sum(map(len, GROUPS.values())) + len(OF_TRL), "two of one name"


@pytest.mark.every(3)
@pytest.mark.parametrize("name", SOME_QUICK)
def test_every_kind_of_content_is_printed_and_masked_right_or_refused_or_noted(name):
    line, faults = table_row(name, TEMPLATES[name], make_tokenizer)
    assert faults == []
    assert line in PAGE, "run `python docs/write_templates.py`"


@pytest.mark.parametrize(
    ("name", "kind"), [("kimi_k2", "call"), ("content_only", "developer"), ("qwen3", "reasoning"), ("vicuna", "tools")]
)
def test_the_judge_sees_a_text_that_is_lost_in_silence(name, kind):
    tokenizer = make_tokenizer(SHAPES[name])
    renderer = Renderer(tokenizer)
    renderer._texts.check = lambda *_: []
    assert any(judge(renderer, tokenizer, make_case(kind, place)).faults for place in ("last", "first"))


@pytest.mark.parametrize("name", ["granite_3_0", "zephyr", "tulu", "chatml"])
def test_the_judge_sees_a_header_that_is_trained(name):
    tokenizer = make_tokenizer(SHAPES[name])
    renderer = Renderer(tokenizer)
    renderer._texts._is_proven = True
    mask = renderer._texts.mask
    mask.prompts.before = lambda *_: ""  # as if the template printed no header
    renderer._texts._num_rendered = 1_000  # a row that is compared with nothing
    faults = judge(renderer, tokenizer, make_case("turns", "first")).faults
    assert any("begins elsewhere" in fault for fault in faults)


SIGNS = st.text(alphabet="\"'\\{}<>&\n é🙂,.:/|", max_size=5)


class DressedMaker(Maker):
    """With signs around each word that templates escape, strip or trip over."""

    def __init__(self, signs):
        super().__init__()
        self._signs = cycle(signs)

    def word(self, owner=None):
        word = super().word(owner)
        return word if owner is not None else f"{next(self._signs)}{word}{next(self._signs)}"


def random_case(kinds, signs):
    maker = DressedMaker(signs)
    for kind in kinds:
        if maker.messages and kind in ("system", "developer", "tools"):
            kind = "turns"
        if kind == "last call":
            kind = "call"
        KINDS[kind](maker)
    return Case(maker.messages, maker.tools, maker.words)


OTHERS = ("gemma4_v5", "gptoss", "qwen3_5_think", "llama3_1", "nemotron_3_nano", "deepseekv3", "lfm2_2_5")
QUICK = (*SHAPES, *(f"trl {name}" for name in OTHERS))
"""Templates that compile fast, and one of each kind of trl's."""

RENDERERS = {}


def renderer_of(name):
    if name not in RENDERERS:
        tokenizer = make_tokenizer(TEMPLATES[name])
        RENDERERS[name] = (Renderer(tokenizer), tokenizer)
    return RENDERERS[name]


def judge_random(name, kinds, signs):
    renderer, tokenizer = renderer_of(name)
    verdict = judge(renderer, tokenizer, random_case(kinds, signs))
    if verdict.outcome != "refused":  # a row may be refused for its signs alone
        assert verdict.faults == ()


ROWS = {
    "kinds": st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=5),
    "signs": st.lists(SIGNS, min_size=1, max_size=6),
}


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(QUICK), **ROWS)
def test_what_a_random_row_loses_on_a_random_template_is_refused_or_noted(name, kinds, signs):
    judge_random(name, kinds, signs)


@pytest.mark.torture
@settings(max_examples=20_000, deadline=None)
@given(name=st.sampled_from(sorted(TEMPLATES)), **ROWS)
def test_what_a_random_row_loses_is_refused_or_noted_in_many_rows(name, kinds, signs):
    judge_random(name, kinds, signs)
