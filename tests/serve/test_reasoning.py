import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_cli.data.render.answer_frame import AnswerFrame
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.serve.reasoning import ReasoningSplitter, visible_frame
from tests.tiny_models import byte_tokenizer

THINK = AnswerFrame(opening="<think>", closing="</think>")
OPENED = AnswerFrame(opening="<think>", closing="</think>", opens_in_prompt=True)
LED = AnswerFrame(lead="final:")
OPENED_AND_LED = AnswerFrame(opening="<think>", closing="</think>", opens_in_prompt=True, lead="final:")


def parted(frame, pieces):
    splitter = ReasoningSplitter(frame)
    parts = [part for piece in pieces for part in splitter.push(piece)] + splitter.finish()
    return tuple("".join(part.text for part in parts if part.is_reasoning is wanted) for wanted in (True, False))


CASES = [
    (THINK, "<think>\nso\n</think>\n\nyes", ("so", "yes")),
    (THINK, "\n<think>so</think>yes", ("so", "yes")),
    (THINK, "<think>\n\n</think>\n\nyes", ("", "yes")),
    (THINK, "yes", ("", "yes")),
    (THINK, "<thin air", ("", "<thin air")),
    (THINK, "<think>a </ b </think>c </think> d", ("a </ b ", "c </think> d")),
    (OPENED, "so</think>\nyes", ("so", "yes")),
    (OPENED, "<think>so</think>yes", ("so", "yes")),
    (OPENED, "never ends </thi", ("never ends </thi", "")),
    (LED, "final: yes", ("", "yes")),
    (LED, "finality", ("", "finality")),
    (OPENED_AND_LED, "so</think>final: yes", ("so", "final: yes")),
    (OPENED_AND_LED, "final: so</think>yes", ("final: so", "yes")),
    (AnswerFrame(), "<think>a</think>b", ("", "<think>a</think>b")),
    (AnswerFrame(), "  indented", ("", "  indented")),
]


@pytest.mark.parametrize(("frame", "text", "expected"), CASES)
@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_reasoning_and_answer_are_parted_however_the_text_comes(frame, text, expected, size):
    assert parted(frame, [text[start : start + size] for start in range(0, len(text), size)]) == expected


@given(st.text("<>/think ab\n"), st.data())
def test_the_cut_of_the_pieces_makes_no_difference(text, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parted(THINK, pieces) == parted(THINK, [text])


def test_text_that_cannot_become_a_mark_comes_at_once():
    splitter = ReasoningSplitter(THINK)
    assert [part.text for part in splitter.push("<think>a<b")] == ["a<b"]
    assert [part.text for part in splitter.push("</")] == []
    assert [part.text for part in splitter.push("i>")] == ["</i>"]


@pytest.mark.parametrize("is_special", [True, False])
def test_marks_that_are_special_tokens_are_not_looked_for_in_a_text_without_them(is_special):
    tokenizer = byte_tokenizer()
    marks = ["<think>", "</think>"]
    tokenizer.add_tokens(marks, special_tokens=is_special)
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    frame = Renderer(tokenizer).answer_frame
    assert frame.closing == "</think>"
    assert (visible_frame(frame, tokenizer) == frame) is not is_special
