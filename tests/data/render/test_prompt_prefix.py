"""What inference sends for a conversation is the exact prefix of the row that training saw."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest
import trl
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_cli.constants import IGNORE_INDEX
from qlora_cli.data.example import Conversation, Place
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.errors import DataError
from tests.data.render.conversations import CALL, CONVERSATIONS, SUNNY, WEATHER, assistant, system, user

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
NAMES = sorted(path.stem for path in TEMPLATES.glob("*.jinja") if not path.stem.endswith("_training"))

# Their generation prompt opens a <think> that the turn of an answer without reasoning does not have.
OPENS_ANOTHER_TURN = {"deepseek_r1_distill", "deepseekv3"}


def num_prefixes(renderer, tokenizer, messages):
    """Answers whose prompt is the prefix of their row, and the row trained from there; all that print alike must be."""
    tools = [WEATHER] if any("tool_calls" in message for message in messages) else None
    number = 0
    for index, message in enumerate(messages):
        if message["role"] != "assistant" or index == 0:
            continue
        before, until = (renderer._texts.as_template_reads(messages[:end]) for end in (index, index + 1))
        try:
            [row] = renderer.render([Conversation(until, tools, Place("test.jsonl", 1, 1))])
            prompt_ids = renderer.prompt_ids(before, tools)
            prompt = tokenizer.apply_chat_template(before, tools=tools, add_generation_prompt=True, tokenize=False)
            text = tokenizer.apply_chat_template(until, tools=tools, tokenize=False)
        except (DataError, jinja2.TemplateError):
            continue  # refused, e.g. a system turn in Gemma
        if text.startswith(prompt):
            assert row.input_ids[: len(prompt_ids)] == prompt_ids
            assert row.labels[len(prompt_ids) - 1] == IGNORE_INDEX
            assert row.labels[len(prompt_ids) :][:1] != [IGNORE_INDEX]
            number += 1
    return number


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_prefixes_with_every_template(name, tokenizer_for):
    tokenizer = tokenizer_for((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))
    renderer = Renderer(tokenizer)
    number = sum(num_prefixes(renderer, tokenizer, messages) for messages in CONVERSATIONS)
    assert (number == 0) == (name in OPENS_ANOTHER_TURN)


WORDS = st.text(alphabet="ab \\n.é🙂<1", min_size=1, max_size=6).map(lambda text: f"x{text}")
CALLING = assistant("", tool_calls=[CALL])
PLAIN_TURN = st.builds(lambda ask, say: [user(ask), assistant(say)], WORDS, WORDS)
THINKING_TURN = st.builds(
    lambda ask, think, say: [user(ask), assistant(say, reasoning_content=think)], WORDS, WORDS, WORDS
)
CALLING_TURN = st.builds(
    lambda ask, result, say: [user(ask), CALLING, {**SUNNY, "content": result}, assistant(say)], WORDS, WORDS, WORDS
)


@settings(max_examples=25, deadline=None)
@given(
    instruction=st.none() | WORDS,
    turns=st.lists(st.one_of(PLAIN_TURN, THINKING_TURN, CALLING_TURN), min_size=1, max_size=4),
)
@pytest.mark.parametrize("name", ["qwen3", "qwen3_vl", "llama3_1", "lfm2_v2", "gptoss", "gemma4_v5", "glm4moe"])
def test_prompts_are_prefixes_whatever_the_turns_are(name, instruction, turns, renderer_of):
    messages = [system(instruction)] if instruction else []
    for turn in turns:
        messages += turn
    renderer, tokenizer = renderer_of(name)
    assert num_prefixes(renderer, tokenizer, messages) > 0


@pytest.fixture(scope="module")
def renderer_of(tokenizer_for):
    """Renderer and tokenizer of a template of trl, made once."""
    made = {}

    def of(name):
        if name not in made:
            tokenizer = tokenizer_for((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))
            made[name] = (Renderer(tokenizer), tokenizer)
            made[name][0]._texts.check = lambda *_: []  # whether all is printed is another test's claim
        return made[name]

    return of
