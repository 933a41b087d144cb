"""A secret becomes unreadable where it stands, and the rest of the tree stays."""

from __future__ import annotations

import pytest

from qlora_cli.errors import ArgumentError, Problem
from qlora_cli.recipe.secret_values import without_secrets
from qlora_cli.recipe.starter import write_starter
from qlora_cli.recipe.tree import UNREADABLE
from qlora_cli.recipe.yaml_text import parse_yaml

TOKEN = "hf_" + "a1" * 17


def cleaned(text: str):
    root, problems = without_secrets(parse_yaml(text, "a.yaml").root)
    return root.plain(), [(problem.place, problem.text) for _, problem in problems]


def test_a_value_that_is_a_secret_is_named_by_its_key():
    plain, problems = cleaned(f"lora:\n  r: 1\n  alpha: [2, {TOKEN}]\n")
    assert plain == {"lora": {"r": 1, "alpha": [2, UNREADABLE]}}
    assert problems == [("a.yaml:3", "'lora.alpha[1]' holds a secret: Hugging Face token")]


def test_a_key_that_is_a_secret_is_named_by_its_section():
    plain, problems = cleaned(f"lora:\n  r: 1\n  {TOKEN}: 2\n{TOKEN}: 3\n")
    assert plain == {"lora": {"r": 1}}
    assert problems == [
        ("a.yaml:3", "a key in 'lora' is a secret: Hugging Face token"),
        ("a.yaml:4", "a key is a secret: Hugging Face token"),
    ]


def test_a_tree_without_secrets_is_unchanged():
    text = "model: {base_model: gpt2, revision: 607a30d783dfa663caf39e06633721c8d4cfcd7e}\nlora: {r: 8, use_dora: true}"
    root = parse_yaml(text, "a.yaml").root
    assert without_secrets(root) == (root, [])


def test_an_error_is_made_without_the_secret_in_it():
    assert str(Problem(f"cannot load '{TOKEN}'")) == "error: cannot load '(secret Hugging Face token)'"


@pytest.mark.parametrize("place", ["base", "data", "out"])
def test_a_starter_recipe_is_not_written_with_a_secret(tmp_path, place):
    values = {"base": "gpt2", "data": "a.jsonl", "out": "chat.yaml", place: f"{TOKEN}.yaml"}
    with pytest.raises(ArgumentError, match=f"--{place} holds a secret: Hugging Face token"):
        write_starter(tmp_path / values["out"], values["base"], values["data"], overwrite=False)
    assert list(tmp_path.iterdir()) == []
