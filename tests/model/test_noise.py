"""NEFTune's noise: as large as the paper says for each document, and only while training."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from qlora_cli.model.adapter import attach_adapter
from qlora_cli.model.noise import add_embedding_noise
from qlora_cli.recipe.schema import LoraSection

HIDDEN = 64
ALPHA = 5.0


@pytest.fixture
def embedded(tiny_base):
    """The embeddings that the first layer gets, for documents of given lengths in one row."""

    def run(lengths, alpha=ALPHA, *, train=True, seed=0, lora=None):
        base = AutoModelForCausalLM.from_pretrained(tiny_base)
        model = attach_adapter(base, LoraSection(r=4, lora_dropout=0.0, **(lora or {}))).train(train)
        if alpha is not None:
            add_embedding_noise(model, alpha)
        seen = []
        base.base_model.layers[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        torch.manual_seed(seed)
        model(input_ids=torch.full_like(positions, 7), position_ids=positions, use_cache=False)
        return seen[0][0]

    return run


def test_each_document_of_a_packed_row_has_the_noise_of_its_own_length(embedded):
    lengths = [200, 50]
    noise = (embedded(lengths) - embedded(lengths, alpha=None)).split(lengths)
    for part, length in zip(noise, lengths, strict=True):
        bound = ALPHA / math.sqrt(length * HIDDEN)
        assert 0.98 * bound < part.abs().max() <= bound
        assert part.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)  # of an even distribution
        assert part.mean().abs() < 0.1 * bound


def test_it_is_drawn_anew_and_repeats_with_the_generator(embedded):
    assert torch.equal(embedded([9]), embedded([9]))
    assert not torch.equal(embedded([9]), embedded([9], seed=1))


def test_there_is_none_outside_of_training(embedded):
    assert torch.equal(embedded([9], train=False), embedded([9], alpha=None, train=False))


def test_embeddings_that_are_trained_in_full_are_noisy_too(embedded):
    saved = {"modules_to_save": ("embed_tokens",)}
    assert not torch.equal(embedded([9], lora=saved), embedded([9], alpha=None, lora=saved))
