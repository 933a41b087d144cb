"""Tool calls and reasoning: what a template prints for them is read back as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_cli.data.render.answer_frame import AnswerFrame
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.serve.engine.requests import Finish
from qlora_cli.serve.http.answer_parts import AnswerParts, Part
from qlora_cli.serve.http.telling import ChatTelling
from qlora_cli.serve.http.tool_format import ToolFormat, find_tool_format
from tests.tiny_models import byte_tokenizer

TEMPLATES = {path.stem: path for path in (Path(__file__).parents[2] / "data" / "render").rglob("*.jinja")}

HERMES = ToolFormat("<tool_call>", "</tool_call>")
THINK = AnswerFrame(lead="<think>\n\n</think>", opening="<think>", closing="</think>")


def found(name: str) -> ToolFormat | None:
    tokenizer = byte_tokenizer("<|im_start|>", "<|eot_id|>", "[TOOL_CALLS]")
    tokenizer.chat_template = TEMPLATES[name].read_text()
    return find_tool_format(Renderer(tokenizer))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("hermes", HERMES),
        ("qwen3", HERMES),
        ("qwen3_instruct", HERMES),
        ("llama_3_1", ToolFormat("", "")),
        ("glm_4_5", None),  # no JSON: text stays text
        ("qwen3_coder", None),
        ("chatml", None),
    ],
)
def test_the_format_is_read_off_real_templates_or_not_known(name, wanted):
    assert found(name) == wanted


def taken_apart(parts: AnswerParts, text: str, size: int) -> tuple[str, str, list]:
    told = [parts.push(text[at : at + size]) for at in range(0, len(text), size)] + [parts.finish()]
    calls = [call for part in told for call in part.calls]
    return "".join(part.reasoning for part in told), "".join(part.content for part in told), calls


CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "</b> \\"x\\""}}\n</tool_call>'
ANSWERS = [
    ("Hello, <b>world</b>.", ("", "Hello, <b>world</b>.", [])),
    ("<think>\n2 + 2\n</think>\n\n4", ("2 + 2", "4", [])),
    ("<think>\n\n</think>\n\nYes", ("", "Yes", [])),
    ("<think>\nnever ends", ("never ends", "", [])),
    (CALL, ("", "", [("f", {"a": '</b> "x"'})])),
    ("Wait.\n" + CALL + "\n" + CALL, ("", "Wait.", [("f", {"a": '</b> "x"'})] * 2)),
    ("<think>\nhm\n</think>\n\n" + CALL, ("hm", "", [("f", {"a": '</b> "x"'})])),
    ('<tool_call>\n{"name": "f", broken', ("", '<tool_call>\n{"name": "f", broken', [])),
    ("a <tool", ("", "a <tool", [])),
    ("", ("", "", [])),
]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(("text", "wanted"), ANSWERS)
def test_an_answer_is_taken_apart_alike_wherever_its_pieces_end(text, wanted, size):
    assert taken_apart(AnswerParts(THINK, HERMES, frozenset("f")), text, size) == wanted


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_json_without_marks_is_a_call_only_of_a_tool_that_was_given(size):
    bare = ToolFormat("", "")
    text = '{"name": "f", "parameters": {"a": 1}}'
    assert taken_apart(AnswerParts(AnswerFrame(), bare, frozenset("f")), text, size)[2] == [("f", {"a": 1})]
    assert taken_apart(AnswerParts(AnswerFrame(), bare, frozenset("g")), text, size) == ("", text, [])
    assert taken_apart(AnswerParts(AnswerFrame(), bare, frozenset("f")), "Well, {}", size) == ("", "Well, {}", [])


@pytest.mark.parametrize(("reason", "told"), [("stop", "tool_calls"), ("length", "length")])
def test_a_call_in_an_answer_that_was_cut_is_not_told_as_finished(reason, told):
    telling, part = ChatTelling("base", has_logprobs=False), Part(calls=[("look_up", {"city": "Oslo"})])
    finish = Finish(reason, num_prompt_tokens=5, num_new_tokens=9)
    assert telling.chunk(part, [])["choices"][0]["delta"]["tool_calls"]
    assert telling.closing(finish)["choices"][0]["finish_reason"] == told
    assert telling.whole([part], [], finish)["choices"][0]["finish_reason"] == told
