"""Tokens: prompts are exact prefixes, turns end, documents begin and end once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import trl
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from qlora_cli.data.causes import Cause, RowError
from qlora_cli.data.example import Conversation, Place, PlainText
from qlora_cli.data.render.renderer import IGNORE_INDEX, Renderer
from qlora_cli.errors import DataError

PLACE = Place("test.jsonl", 1, 1)
TRL_TEMPLATES = Path(trl.__file__).parent / "chat_templates"
CHATML = """{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
NO_CONTROL_TOKENS = """{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"""


def turns(*texts):
    roles = ["user", "assistant"]
    return [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]


def trained(row, tokenizer):
    return tokenizer.decode([label for label in row.labels if label != IGNORE_INDEX])


def span_starts(labels):
    pairs = enumerate(zip([IGNORE_INDEX, *labels], labels, strict=False))
    return [at for at, (before, label) in pairs if before == IGNORE_INDEX != label]


def assert_prompts_are_prefixes(renderer, messages):
    [row] = renderer.render([Conversation(messages, None, PLACE)])
    starts = span_starts(row.labels)
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    assert len(starts) == len(answers)
    for start, index in zip(starts, answers, strict=True):
        assert renderer.prompt_ids(messages[:index]) == row.input_ids[:start]


@pytest.mark.parametrize("name", ["llama3", "gemma", "phi3", "qwen2_5", "qwen3_instruct_2507", "cohere", "lfm2"])
def test_the_prompt_of_every_turn_is_the_exact_prefix_of_the_row(name, tokenizer_for):
    template = (TRL_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    messages = turns("Hi", "Hello", "\nGrüße 🙂", "\n\n  indented", "a", "b")
    assert_prompts_are_prefixes(Renderer(tokenizer_for(template)), messages)


LETTERS = st.text(alphabet="ab :\n 1é🙂", min_size=1, max_size=8).filter(lambda text: text.strip())


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(LETTERS, min_size=1, max_size=3))
@pytest.mark.parametrize("template", [CHATML, NO_CONTROL_TOKENS], ids=["chatml", "no control tokens"])
def test_prompts_are_prefixes_even_where_tokens_merge_over_the_border(template, texts, tokenizer_for):
    messages = turns(*(part for text in texts for part in (text, text)))
    assert_prompts_are_prefixes(Renderer(tokenizer_for(template)), messages)


@pytest.mark.parametrize("text", ["one\ntwo", "(x)", "two  words"])
def test_sentencepiece_words_cut_from_the_prompt_get_no_space_of_their_own(text):
    tokens = dict.fromkeys(["<unk>", "</s>", *"▁A:(x)\nonetwrds", ":("])
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, [(":", "(")], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    [row] = Renderer(tokenizer).render([PlainText("A:", text, PLACE)])
    assert trained(row, tokenizer).replace("▁", " ") == text + "</s>"
    assert tokenizer.decode(row.input_ids) == "A:" + text + "</s>"


def test_end_of_turn_is_what_the_template_closes_with_and_end_of_sequence(tokenizer_for):
    tokenizer = tokenizer_for(CHATML, extra=("<|endoftext|>",), eos="<|endoftext|>")
    ids = Renderer(tokenizer).end_of_turn_ids
    assert set(tokenizer.convert_ids_to_tokens(list(ids))) == {"<|im_end|>", "<|endoftext|>"}


def test_phi3_trains_both_of_its_endings(tokenizer_for):
    tokenizer = tokenizer_for((TRL_TEMPLATES / "phi3.jinja").read_text(encoding="utf-8"))
    [row] = Renderer(tokenizer).render([Conversation(turns("Hi", "Hello"), None, PLACE)])
    assert trained(row, tokenizer) == "Hello<|end|>\n</s>"


def test_a_base_without_template_gets_the_alpaca_layout(tokenizer_for):
    tokenizer = tokenizer_for()
    renderer = Renderer(tokenizer)
    messages = [
        {"role": "user", "content": "Add.\n\n1 2", "instruction": "Add.", "input": "1 2"},
        {"role": "assistant", "content": "3"},
        *turns("And 4?", "7"),
    ]
    [row] = renderer.render([Conversation(messages, None, PLACE)])
    assert tokenizer.decode(row.input_ids) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n"
        "### Response:\n3</s>\n\n### Instruction:\nAnd 4?\n\n### Response:\n7</s>"
    )
    assert trained(row, tokenizer) == "3</s>7</s>"
    assert_prompts_are_prefixes(renderer, messages)


def test_in_the_alpaca_layout_a_system_turn_replaces_the_preamble(tokenizer_for):
    tokenizer = tokenizer_for()
    messages = [{"role": "system", "content": "Be brief."}, *turns("Hi", "Hello")]
    [row] = Renderer(tokenizer).render([Conversation(messages, None, PLACE)])
    assert tokenizer.decode(row.input_ids) == "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello</s>"


def with_bos(tokenizer):
    """The tokenizer adds <s> before plain text, as Llama's does."""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


@pytest.mark.parametrize("prompt", ["Q: ", "<s>Q: "], ids=["bare", "already there"])
def test_plain_text_begins_with_bos_once_and_ends_with_eos(prompt, tokenizer_for):
    tokenizer = with_bos(tokenizer_for())
    [row] = Renderer(tokenizer).render([PlainText(prompt, "A", PLACE)])
    assert tokenizer.decode(row.input_ids) == "<s>Q: A</s>"
    assert trained(row, tokenizer) == "A</s>"


def test_the_alpaca_layout_begins_with_bos_where_the_tokenizer_adds_one(tokenizer_for):
    tokenizer = with_bos(tokenizer_for())
    renderer = Renderer(tokenizer)
    [row] = renderer.render([Conversation(turns("Hi", "Hello"), None, PLACE)])
    assert row.input_ids.count(tokenizer.bos_token_id) == 1
    rendered = tokenizer.apply_chat_template(turns("Hi", "Hello"), chat_template=renderer.template, tokenize=False)
    assert tokenizer.decode(row.input_ids) == rendered


def test_running_text_is_trained_from_its_second_token_to_eos(tokenizer_for):
    tokenizer = tokenizer_for()
    [row] = Renderer(tokenizer).render([PlainText("", "xyz", PLACE)])
    assert row.labels == [IGNORE_INDEX, *row.input_ids[1:]]
    assert row.input_ids[-1] == tokenizer.eos_token_id


def test_templates_of_vision_models_get_content_as_parts(tokenizer_for):
    tokenizer = tokenizer_for((TRL_TEMPLATES / "smolvlm.jinja").read_text(encoding="utf-8"))
    [row] = Renderer(tokenizer).render([Conversation(turns("Hi", "Hello"), None, PLACE)])
    assert "User: Hi" in tokenizer.decode(row.input_ids)
    assert trained(row, tokenizer) == " Hello<end_of_utterance>\n"


def test_tools_that_the_template_would_drop_are_refused_with_the_place(tokenizer_for):
    with pytest.raises(DataError, match=r"test\.jsonl:1: the tool `f` is not printed by the chat template"):
        Renderer(tokenizer_for(CHATML)).render([Conversation(turns("Hi", "Hello"), [{"name": "f"}], PLACE)])


def test_every_row_that_the_template_refuses_is_named(tokenizer_for):
    tokenizer = tokenizer_for((TRL_TEMPLATES / "gemma.jinja").read_text(encoding="utf-8"))
    rows = [
        Conversation([{"role": "system", "content": "s"}, *turns("Hi", "Hello")], None, Place("t.jsonl", line, line))
        for line in range(1, 31)
    ]
    with pytest.raises(DataError) as caught:
        Renderer(tokenizer).render(rows)
    assert [problem.place for problem in caught.value.problems[:2]] == ["t.jsonl:1", "t.jsonl:2"]
    assert "System role not supported" in caught.value.problems[0].text
    assert caught.value.problems[-1].text == "... and 10 more problems like these"


def test_each_row_has_its_outcome_in_its_place(tokenizer_for):
    tokenizer = tokenizer_for((TRL_TEMPLATES / "gemma.jinja").read_text(encoding="utf-8"))
    refused = Conversation([{"role": "system", "content": "s"}, *turns("Hi", "Hello")], None, Place("t.jsonl", 2, 2))
    kept = [Conversation(turns("Hi", text), None, PLACE) for text in ("one", "two")]
    first, fault, last = Renderer(tokenizer).render_each([kept[0], refused, kept[1]])
    assert [trained(row, tokenizer) for row in (first, last)] == ["one<end_of_turn>\n", "two<end_of_turn>\n"]
    assert isinstance(fault, RowError)
    assert (fault.cause, fault.problems[0].place) == (Cause.TEMPLATE, "t.jsonl:2")


def test_a_row_of_which_nothing_is_trained_is_a_row(tokenizer_for):
    [row] = Renderer(tokenizer_for(CHATML)).render_each([Conversation(turns("Hi"), None, PLACE)])
    assert row.num_trained_tokens == 0


@pytest.mark.slow
def test_a_renderer_starts_no_thread_before_its_first_batch():
    code = """
import os
os.environ["OMP_NUM_THREADS"] = "1"
from tests.data.conftest import make_tokenizer
from qlora_cli.data.render.renderer import Renderer
tokenizer = make_tokenizer("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
tokenizer.backend_tokenizer.encode("warm")
before = len(os.listdir("/proc/self/task"))
renderer = Renderer(tokenizer)
renderer.end_of_turn_ids
assert len(os.listdir("/proc/self/task")) == before
"""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "true", "PYTHONPATH": os.getcwd()}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_the_fingerprint_is_of_tokenizer_template_and_what_is_trained(tokenizer_for):
    usual = Renderer(tokenizer_for(CHATML))
    others = [
        Renderer(tokenizer_for(CHATML, extra=("<|other|>",))),
        Renderer(tokenizer_for(CHATML), NO_CONTROL_TOKENS),
        Renderer(tokenizer_for(CHATML), train_on="all"),
    ]
    assert usual.fingerprint == Renderer(tokenizer_for(CHATML)).fingerprint
    assert len({renderer.fingerprint for renderer in (usual, *others)}) == 4


def test_a_tokenizer_that_was_set_to_cut_or_to_split_special_tokens_gives_the_same(tokenizer_for):
    renderer = Renderer(tokenizer := tokenizer_for(CHATML))
    example = Conversation(turns("Hi", "Hello there"), None, PLACE)
    expected = renderer.render([example])
    tokenizer("Hi", truncation=True, max_length=2, split_special_tokens=True)
    assert renderer.render([example]) == expected


def test_a_template_that_trims_what_its_loop_printed_is_refused(tokenizer_for):
    template = "{% set chat %}  {% for m in messages %}  {{ m.content }}{% endfor %}{% endset %}{{ chat | trim }}"
    with pytest.raises(DataError, match="prints other text when it is traced"):
        Renderer(tokenizer_for(template)).render([Conversation(turns("Hi", "Hello"), None, PLACE)])


def test_a_tokenizer_without_end_of_sequence_is_refused(tokenizer_for):
    tokenizer = tokenizer_for(CHATML)
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no end-of-sequence token"):
        Renderer(tokenizer)
