"""A base that cannot do what training asks of it is refused with what to do."""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM, BloomConfig, CTRLConfig

from qlora_cli.errors import RecipeError
from qlora_cli.model.model_support import require_gradient_checkpointing, require_position_ids
from tests.plan.bases import config_of


def test_a_model_without_position_ids_is_refused():
    config = BloomConfig(vocab_size=64, hidden_size=64, n_layer=1, n_head=2)
    with pytest.raises(RecipeError, match="BloomForCausalLM takes no position_ids"):
        require_position_ids(AutoModelForCausalLM.from_config(config))


def test_a_model_that_cannot_recompute_is_refused():
    config = CTRLConfig(vocab_size=64, n_positions=32, n_embd=16, dff=16, n_layer=1, n_head=2)
    with pytest.raises(RecipeError, match="CTRLLMHeadModel does not support gradient checkpointing") as caught:
        require_gradient_checkpointing(AutoModelForCausalLM.from_config(config))
    assert caught.value.problems[0].hint == "--set training.gradient_checkpointing=false"


def test_a_base_that_can_do_it_all_passes():
    base = AutoModelForCausalLM.from_config(config_of("llama"))
    require_position_ids(base)
    require_gradient_checkpointing(base)
