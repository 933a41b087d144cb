import math
import random
from dataclasses import replace

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from qlora_cli.errors import ArgumentError
from qlora_cli.model.tiny import TinyOptions, make_tiny_base
from qlora_cli.model.tiny_corpus import python_help_topics, read_corpus


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    corpus = tmp_path_factory.mktemp("corpus") / "words.txt"
    draw = random.Random(0)
    words = ["the", "lamp", "heater", "works", "and", "stops", "again", "near", "a", "warm", "quiet", "kitchen"]
    corpus.write_text("\n\n".join(" ".join(draw.choices(words, k=9)) for _ in range(200)))
    return TinyOptions(
        (corpus,), hidden_size=64, num_layers=2, num_heads=2, vocab_size=320, steps=30, batch_size=8, window_length=64
    )


@pytest.fixture(scope="module")
def made(options, tmp_path_factory):
    return make_tiny_base(tmp_path_factory.mktemp("tiny") / "base", options)


def test_the_loss_falls_clearly_below_that_of_a_uniform_guess(made):
    assert made.first_loss > 0.9 * math.log(made.vocab_size)
    assert made.last_loss < 0.7 * math.log(made.vocab_size)


def test_plain_transformers_loads_model_tokenizer_and_template(made):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(made.path), AutoTokenizer.from_pretrained(made.path)
    assert model.num_parameters() == made.num_parameters
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_the_end_of_turn_is_one_token_and_ends_generation(made):
    tokenizer = AutoTokenizer.from_pretrained(made.path)
    assert tokenizer.encode("<|im_end|>", add_special_tokens=False) == [tokenizer.eos_token_id]
    assert len({tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id}) == 3
    assert AutoModelForCausalLM.from_pretrained(made.path).generation_config.eos_token_id == tokenizer.eos_token_id


def test_any_text_survives_the_tokenizer(made):
    tokenizer = AutoTokenizer.from_pretrained(made.path)
    text = "naïve 東京 🙂\t 12,345  x"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_the_same_seed_gives_the_same_bytes(made, options, tmp_path):
    again = make_tiny_base(tmp_path / "again", options)
    names = sorted(path.name for path in made.path.iterdir())
    assert names == sorted(path.name for path in again.path.iterdir())
    assert all((made.path / name).read_bytes() == (again.path / name).read_bytes() for name in names)


def test_another_seed_gives_other_weights(made, options, tmp_path):
    other = make_tiny_base(tmp_path / "other", replace(options, seed=1))
    assert other.last_loss != made.last_loss


@pytest.mark.parametrize("change", [{"hidden_size": 100}, {"num_heads": 3}, {"vocab_size": 100}])
def test_sizes_that_do_not_fit_are_refused(options, tmp_path, change):
    with pytest.raises(ArgumentError):
        make_tiny_base(tmp_path / "base", replace(options, **change))


def test_a_folder_in_use_is_refused(made, options):
    with pytest.raises(ArgumentError, match="not empty") as caught:
        make_tiny_base(made.path, options)
    assert "hint: add --force, or name another folder" in str(caught.value)


def test_force_replaces_a_base_that_was_made_here_and_nothing_else(options, tmp_path):
    out = make_tiny_base(tmp_path / "base", replace(options, steps=0)).path
    before = (out / "model.safetensors").read_bytes()
    make_tiny_base(out, replace(options, steps=0, seed=1), force=True)
    assert (out / "model.safetensors").read_bytes() != before
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "thesis.txt").write_text("years of work")
    with pytest.raises(ArgumentError, match="was not written by qlora"):
        make_tiny_base(tmp_path / "project", replace(options, steps=0), force=True)
    assert (tmp_path / "project" / "thesis.txt").read_text() == "years of work"


def test_the_default_corpus_is_english_text():
    assert sum(map(len, python_help_topics())) > 200_000


def test_json_rows_become_their_strings(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"q": "What?", "n": 1}\n{"q": "That.", "more": ["yes"]}\n')
    assert read_corpus([file]) == ["What?", "That.\n\nyes"]


def test_a_broken_json_line_is_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"q": 1}\n{oops\n')
    with pytest.raises(ArgumentError, match=r"rows\.jsonl:2"):
        read_corpus([file])
