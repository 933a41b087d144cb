"""What of an answer is scored, by the templates of families that reason."""

from __future__ import annotations

import pytest

from qlora_cli.data.render.renderer import Renderer
from qlora_cli.evaluate.scored_part import ScoredPart
from tests.data.render.templates import TEMPLATES
from tests.tiny_models import byte_tokenizer

HARMONY = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>")


def scored(template, text, *tokens, is_ended=True):
    """What is scored of `text`, as a model with this template says it."""
    tokenizer = byte_tokenizer(*tokens)
    tokenizer.bos_token = "<|im_start|>"  # some templates print one
    part = ScoredPart(tokenizer, Renderer(tokenizer, TEMPLATES[template]).answer_frame)
    return part.of(tokenizer(text, add_special_tokens=False).input_ids, is_ended=is_ended)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("qwen3", "<think>\n\n</think>\n\n42"),
        ("qwen3", "<think>\n6 * 7 is 42, not 41\n</think>\n\n42"),
        ("qwen3", "42"),
        ("glm_4_5", "\n<think></think>\n42"),
        ("glm_4_5", "\n<think>seven sixes</think>\n42"),
        ("deepseek_r1", "seven sixes\n</think>\n\n42"),
        ("deepseek_v3_1", "42"),
        ("nemotron", "seven sixes</think>42"),
        ("nemotron", "</think>42"),
        ("seed_oss", "<seed:think>seven sixes</seed:think>42"),
        ("magistral", "[THINK]seven sixes[/THINK]42"),
        ("exaone", "<think>\nseven sixes\n</think>\n\n42"),
        ("minimax_m2", "seven sixes\n</think>\n\n42"),
        ("marked_late", "Well: 42"),
        ("chatml", "42"),
        ("alpaca", "42"),
    ],
)
def test_the_answer_behind_the_reasoning_is_scored(template, text):
    if template == "alpaca":
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = None
        part = ScoredPart(tokenizer, Renderer(tokenizer).answer_frame)
        assert part.of(tokenizer(text).input_ids, is_ended=True).scored == "42"
        return
    answer = scored(template, text)
    assert (answer.scored.strip(), answer.ended) == ("42", "end")
    assert "42" in answer.text


@pytest.mark.parametrize(
    "text",
    [
        "<|channel|>final<|message|>42",
        "<|channel|>analysis<|message|>seven sixes<|end|><|start|>assistant<|channel|>final<|message|>42",
    ],
)
@pytest.mark.parametrize("tokens", [(), HARMONY], ids=["as text", "as special tokens"])
def test_of_harmony_the_final_channel_is_scored(text, tokens):
    assert scored("gpt_oss", text, *tokens).scored == "42"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("qwen3", "<think>\nseven sixes are 42"),
        ("deepseek_r1", "seven sixes are 42"),
        ("nemotron", "seven sixes are 42"),
        ("gpt_oss", "<|channel|>analysis<|message|>seven sixes are 42"),
    ],
)
@pytest.mark.parametrize("is_ended", [True, False])
def test_reasoning_that_never_ends_is_no_answer(template, text, is_ended):
    answer = scored(template, text, is_ended=is_ended)
    assert (answer.scored, answer.ended, answer.is_empty) == (None, "reasoning", False)


def test_an_empty_answer_and_one_that_is_cut_are_told_apart():
    empty, cut = scored("qwen3", "<think>\n\n</think>\n\n"), scored("qwen3", "4", is_ended=False)
    assert (empty.scored, empty.ended, empty.is_empty) == ("", "end", True)
    assert (cut.scored, cut.ended, cut.is_empty) == ("4", "length", False)


def test_reasoning_in_a_reference_is_not_compared_with():
    tokenizer = byte_tokenizer()
    part = ScoredPart(tokenizer, Renderer(tokenizer, TEMPLATES["qwen3"]).answer_frame)
    assert part.of_reference("<think>\nseven sixes\n</think>\n\n42") == "42"
    assert part.rule == "scored is what stands behind the last </think>; unended reasoning is no answer"


@pytest.mark.parametrize("template", ["chatml", "gemma", "llama_3_1", "mistral_v3", "zephyr", "qwen3_instruct"])
def test_a_template_that_adds_nothing_has_no_rule(template):
    tokenizer = byte_tokenizer()
    assert ScoredPart(tokenizer, Renderer(tokenizer, TEMPLATES[template]).answer_frame).rule is None
