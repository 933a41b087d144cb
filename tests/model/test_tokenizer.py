"""Tokenizers come ready for batches."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer, Gemma2Config, GPT2Config

from qlora_cli.errors import RecipeError
from qlora_cli.model.tokenizer import load_tokenizer
from qlora_cli.recipe.schema import ModelSection


def test_the_recipe_s_chat_template_replaces_the_tokenizer_s(tiny_base, tmp_path):
    template = tmp_path / "plain.jinja"
    template.write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    tokenizer = load_tokenizer(ModelSection(base_model=str(tiny_base), chat_template=str(template)))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"


def test_a_missing_template_file_is_one_line(tiny_base, tmp_path):
    with pytest.raises(RecipeError, match="chat_template cannot be read"):
        load_tokenizer(ModelSection(base_model=str(tiny_base), chat_template=str(tmp_path / "none.jinja")))


def test_without_a_padding_token_the_end_of_sequence_pads(tiny_base, tmp_path):
    tokenizer = load_tokenizer(ModelSection(base_model=str(tiny_base)))
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(ModelSection(base_model=str(tmp_path)))
    assert loaded.pad_token_id == loaded.eos_token_id


def test_a_folder_without_a_tokenizer_is_one_line(tmp_path):
    with pytest.raises(RecipeError, match="cannot be loaded"):
        load_tokenizer(ModelSection(base_model=str(tmp_path)))


@pytest.mark.parametrize("config", [Gemma2Config(), GPT2Config()], ids=["all unknown", "all empty"])
def test_a_vocabulary_that_is_made_up_is_refused(tmp_path, config):
    config.save_pretrained(tmp_path)
    assert len(AutoTokenizer.from_pretrained(tmp_path)) in (1, 5)  # no error: special tokens only
    with pytest.raises(RecipeError, match="has no vocabulary") as caught:
        load_tokenizer(ModelSection(base_model=str(tmp_path)))
    assert "tokenizer.json" in caught.value.problems[0].hint
