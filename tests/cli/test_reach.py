"""A base that has no embeddings or no positions for the data is refused before the first step, in one line."""

from __future__ import annotations

import json

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from tests.tiny_models import byte_tokenizer

pytestmark = pytest.mark.slow

POSITIONS = 64


@pytest.fixture
def base(tmp_path):
    """A folder with a GPT-2 of 64 positions."""

    def make(vocab_size: int = 300):
        folder = tmp_path / "gpt2"
        config = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=vocab_size, n_positions=POSITIONS)
        GPT2LMHeadModel(config).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        return folder

    return make


def rows_of(folder, num_characters):
    path = folder / f"rows-{num_characters}.jsonl"
    row = json.dumps({"prompt": "say", "completion": "x" * num_characters})
    path.write_text("".join(f"{row}\n" for _ in range(4)))
    return path


@pytest.fixture
def train(call, recipe_file):
    def run(base, data, *settings):
        changes = (f"model.base_model={base}", f"data.train={data}", "data.eval_fraction=null", *settings)
        return call("train", recipe_file, *(part for change in changes for part in ("--set", change)))

    return run


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "unpacked"])
def test_rows_beyond_the_positions_are_refused_with_what_to_type(base, train, tmp_path, packing):
    data = rows_of(tmp_path, 100)
    ran = train(base(), data, "data.max_length=1024", f"data.packing={packing}")
    assert ran.code == 2
    assert "gpt2' has 64 positions, and the longest row has" in ran.err
    assert "hint: --set data.max_length=64" in ran.err
    assert not (tmp_path / "runs/small/recipe.yaml").exists()


def test_short_rows_are_trained_on_and_long_ones_are_not_measured(base, train, call, tmp_path):
    ran = train(base(), rows_of(tmp_path, 10))
    assert ran.code == 0, ran.err
    assert call("eval", "runs/small", "--data", rows_of(tmp_path, 10)).code == 0
    ran = call("eval", "runs/small", "--data", rows_of(tmp_path, 100))
    assert ran.code == 2
    assert "has 64 positions, and the longest row has" in ran.err
    assert "hint: shorten that row" in ran.err


def test_tokens_without_embeddings_are_refused(base, train, tmp_path):
    ran = train(base(vocab_size=200), rows_of(tmp_path, 10))
    assert ran.code == 2
    assert "has embeddings for 200 tokens, and its tokenizer makes token 2" in ran.err


def test_computed_positions_that_the_base_has_never_seen_are_a_warning(train, tiny_base, tmp_path):
    positions = json.loads((tiny_base / "config.json").read_text())["max_position_embeddings"]
    ran = train(tiny_base, rows_of(tmp_path, positions), f"data.max_length={2 * positions}", "training.max_steps=1")
    assert ran.code == 0, ran.err
    assert f"was made for {positions:,} positions: it has never seen later ones" in ran.err
    assert f"--set data.max_length={positions} stays within" in ran.err
