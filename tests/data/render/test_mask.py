"""The mask against independent answers: the hand-marked training templates that ship inside trl, and our own hands."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest
import trl

from qlora_cli.constants import IGNORE_INDEX
from qlora_cli.data.example import Conversation, Place
from qlora_cli.data.render.mask import ChatMask, common_prompt
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.errors import DataError
from tests.data.render.conversations import CALL, CONVERSATIONS, SUNNY, WEATHER, assistant, user

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
PLACE = Place("test.jsonl", 1, 1)

FAMILIES = sorted(path.name.removesuffix("_training.jinja") for path in TEMPLATES.glob("*_training.jinja"))

# Family -> (bytes marked alike, alike once the generation prompt is taken from trl's marks, conversations compared).
# Compared are conversations that neither template refuses and both print alike; docs/templates.md gives the reasons.
EXPECTED = {
    "cohere": (15, 15, 15),
    "cohere2": (15, 15, 15),
    "deepseek_r1_distill": (0, 14, 19),
    "deepseekv3": (0, 14, 15),
    "diffusion_gemma": (15, 15, 19),
    "gemma": (10, 10, 10),
    "gemma3": (15, 15, 15),
    "glm4moe": (0, 0, 0),
    "gptoss": (0, 18, 20),
    "idefics3": (20, 20, 20),
    "lfm2": (19, 20, 20),
    "lfm2_v2": (19, 20, 20),
    "llama3": (20, 20, 20),
    "llava_next": (16, 16, 16),
    "muse_glimmer": (0, 19, 20),
    "nemotron_3_5_lightning": (0, 19, 20),
    "nemotron_3_nano": (0, 19, 20),
    "nemotron_3_super": (0, 19, 20),
    "nemotron_3_ultra": (0, 19, 20),
    "phi3": (19, 20, 20),
    "phi3_5": (19, 20, 20),
    "qwen2_5": (0, 19, 20),
    "qwen2_5_vl": (19, 20, 20),
    "qwen3": (9, 9, 9),
    "qwen3_5_nothink": (0, 12, 12),
    "qwen3_5_think": (0, 12, 12),
    "qwen3_6": (0, 12, 12),
    "qwen3_8": (0, 19, 20),
    "qwen3_instruct_2507": (19, 20, 20),
    "qwen3_vl": (19, 20, 20),
    "smolvlm": (20, 20, 20),
}


def trained_bytes(tokenizer, input_ids, is_trained):
    """For each byte of the text whether its token is trained: rows compare whatever their tokens' borders are."""
    flags = []
    for token, flag in zip(input_ids, is_trained, strict=True):
        text = tokenizer.convert_ids_to_tokens(token)
        is_added = token in tokenizer.added_tokens_decoder  # others are byte-level: one character a byte
        flags += [bool(flag)] * (len(text.encode()) if is_added else len(text))
    return flags


def without_prompts(flags, text, tokenizer, messages, tools):
    """The flags less what the generation prompts, as transformers alone renders them, already hold."""
    flags = list(flags)
    for index, message in enumerate(messages):
        if message["role"] == "assistant" and index > 0:
            prompt = tokenizer.apply_chat_template(
                messages[:index], tools=tools, add_generation_prompt=True, tokenize=False
            ).encode()
            pairs = zip(prompt, text.encode(), strict=False)
            at = next((at for at, (one, other) in enumerate(pairs) if one != other), len(prompt)) - 1
            while at >= 0 and flags[at]:
                flags[at] = False
                at -= 1
    return flags


def compare(family, tokenizer_for):
    """(equal, equal less prompts, compared) over the conversations that both templates print alike."""
    template = (TEMPLATES / f"{family}.jinja").read_text(encoding="utf-8")
    training_template = (TEMPLATES / f"{family}_training.jinja").read_text(encoding="utf-8")
    tokenizer = tokenizer_for(template)
    renderer = Renderer(tokenizer)
    renderer._texts.check = lambda *_: []  # compared is what is printed; what is not is another test's claim
    num_equal = num_equal_less_prompts = num_compared = 0
    for messages in CONVERSATIONS:
        tools = [WEATHER] if any("tool_calls" in message for message in messages) else None
        as_read = renderer._texts.as_template_reads(messages)
        try:
            text, training_text = (
                tokenizer.apply_chat_template(as_read, tools=tools, chat_template=either, tokenize=False)
                for either in (template, training_template)
            )
            [row] = renderer.render([Conversation(messages, tools, PLACE)])
        except (jinja2.TemplateError, TypeError, DataError):
            continue  # what the template refuses, e.g. a system turn in Gemma
        if text != training_text:
            continue
        marked = tokenizer.apply_chat_template(
            as_read,
            tools=tools,
            chat_template=training_template,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        ours = trained_bytes(tokenizer, row.input_ids, [label != IGNORE_INDEX for label in row.labels])
        theirs = trained_bytes(tokenizer, marked["input_ids"], [0, *marked["assistant_masks"][1:]])
        num_compared += 1
        num_equal += ours == theirs
        num_equal_less_prompts += ours == without_prompts(theirs, text, tokenizer, as_read, tools)
    return num_equal, num_equal_less_prompts, num_compared


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mask_from_the_plain_template_is_what_trl_marked_by_hand(family, tokenizer_for):
    assert compare(family, tokenizer_for) == EXPECTED[family]


CHATML = """{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
MISTRAL = """{{ bos_token }}{% for m in messages %}
{%- if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}
{%- else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"""
MARKED = """{% for m in messages %}<|im_start|>{{ m['role'] }}
{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}
{% else %}{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"""
DIALOGUE = [user("Hi"), assistant("Hello"), user("Name?"), assistant("Ada")]


def trained_text(template, messages, tools=None):
    mask = ChatMask(template, {"bos_token": "<s>", "eos_token": "</s>"})
    trace = mask.trace(messages, tools)
    return [trace.text[answer.start : answer.end] for answer in mask.answers(trace, messages, tools)]


@pytest.mark.parametrize(
    ("template", "trained"),
    [
        (CHATML, ["Hello<|im_end|>\n", "Ada<|im_end|>\n"]),
        (MISTRAL, [" Hello</s>", " Ada</s>"]),
        (MARKED, ["Hello<|im_end|>", "Ada<|im_end|>"]),
    ],
    ids=["chatml", "mistral", "generation blocks"],
)
def test_answers_and_their_end_of_turn_are_trained_and_nothing_else(template, trained):
    assert trained_text(template, DIALOGUE) == trained


def test_a_default_system_turn_before_a_first_assistant_turn_is_not_trained():
    template = CHATML.replace(
        "{{ '<|im_start|>'", "{% if loop.first %}<|im_start|>system\nDefault<|im_end|>\n{% endif %}{{ '<|im_start|>'"
    )
    assert trained_text(template, DIALOGUE[1:2]) == ["Hello<|im_end|>\n"]


def test_an_answer_that_looks_like_the_rest_of_the_prompt_is_trained_whole():
    template = CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>\n'")
    assert trained_text(template, [user("Hi"), assistant("<thinker>")]) == ["<thinker><|im_end|>\n"]


def test_a_prompt_that_depends_on_the_users_text_is_rendered_for_every_row():
    template = CHATML.replace(
        "'<|im_start|>assistant\n' }}",
        "'<|im_start|>assistant\n' + ('!' if '/loud' in messages[-1].content else '') }}",
    )
    mask = ChatMask(template, {})
    for text in ["quiet", "/loud", *["quiet"] * 20, "/loud"]:
        messages = [user(text), assistant("!Hey")]
        trace = mask.trace(messages)
        [(start, end, *_)] = mask.answers(trace, messages)
        assert trace.text[start:end] == ("Hey" if text == "/loud" else "!Hey") + "<|im_end|>\n"


@pytest.mark.parametrize(
    ("template", "fragment"),
    [
        ("{{ messages | map(attribute='content') | join(' ') }}", "does not loop over the messages"),
        (CHATML + "{% for m in messages %}{{ m.content }}{% endfor %}", "at two places"),
        ("{% set x %}" + CHATML + "{% endset %}{{ x | upper | replace('<', '') | reverse }}", "cannot be traced"),
        ("{% for m in messages %}{{ m.content.missing.more }}{% endfor %}", "refuses the conversation"),
        ("{% for m in messages %}{{ raise_exception('only jokes') }}{% endfor %}", "only jokes"),
    ],
)
def test_a_template_that_cannot_be_followed_is_refused(template, fragment):
    with pytest.raises(DataError, match=fragment):
        trained_text(template, DIALOGUE)


RESULTS_INSIDE = """{% for m in messages %}{% if m.role != 'tool' %}<|{{ m.role }}|>
{%- if m.tool_calls %}CALL<|wait|>{% for r in messages[loop.index:] if r.role == 'tool' %}({{ r.content }}){% endfor %}
{%- endif %}{{ m.content }}{% if m.content %}<|end|>{% endif %}{% endif %}{% endfor %}
{%- if add_generation_prompt and messages[-1].role == 'user' %}<|assistant|>{% endif %}"""


def test_tool_results_inside_the_assistants_turn_are_not_trained():
    messages = [user("Weather?"), assistant("", tool_calls=[CALL]), SUNNY, assistant("It is.")]
    assert trained_text(RESULTS_INSIDE, messages) == ["CALL<|wait|>", "<|assistant|>It is.<|end|>"]


def test_words_that_the_template_prints_after_the_tool_results_of_their_turn_are_refused():
    messages = [user("Weather?"), assistant("I look.", tool_calls=[CALL]), SUNNY, assistant("It is.")]
    with pytest.raises(DataError, match="prints tool results inside"):
        trained_text(RESULTS_INSIDE, messages)


@pytest.mark.parametrize("family", ["gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "gemma4_v5"])
def test_gemma_4_is_trained_to_call_and_to_answer_and_not_on_the_result(family, tokenizer_for):
    template = (TEMPLATES / f"{family}.jinja").read_text(encoding="utf-8")
    messages = [user("Weather?"), assistant("", tool_calls=[CALL]), SUNNY, assistant("So warm.")]
    tokenizer = tokenizer_for(template)
    [row] = Renderer(tokenizer).render([Conversation(messages, [WEATHER], PLACE)])
    trained = tokenizer.decode([label for label in row.labels if label != IGNORE_INDEX])
    assert trained.startswith("<|tool_call>call:weather{city:")
    assert trained.endswith("So warm.<turn|>\n")
    assert "sunny" in tokenizer.decode(row.input_ids)
    assert "sunny" not in trained
    assert "response:" not in trained


def test_broken_jinja_is_a_fault_of_the_template_with_its_line():
    with pytest.raises(DataError, match="line 2 of the chat template"):
        ChatMask("{{ bos_token }}\n{% for %}", {})


@pytest.mark.parametrize(
    ("prompt", "turn", "shared"),
    [
        ("", "anything", ""),
        ("<a>", "<a>text", "<a>"),
        ("<|A|><think>\n", "<|A|><tool>", "<|A|>"),
        ("assistant\n", "assist", ""),
    ],
)
def test_a_shared_beginning_ends_at_a_word(prompt, turn, shared):
    assert turn[: common_prompt(prompt, turn)] == shared
