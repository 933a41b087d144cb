"""The proof passes where documents are apart and fails where they are not."""

from __future__ import annotations

import pytest
import torch

from qlora_cli.data.collator import Collator
from qlora_cli.errors import NumericError, RecipeError
from qlora_cli.model.adapter import attach_adapter
from qlora_cli.model.base import load_base
from qlora_cli.recipe.schema import LoraSection, ModelSection, QuantizationSection
from qlora_cli.train.isolation import check_takes_positions, prove_isolation


def tuned(folder, attention="sdpa", quantization=None):
    base = load_base(ModelSection(base_model=str(folder), attn_implementation=attention), quantization)
    return attach_adapter(base, LoraSection(r=4))


class LeakyCollator(Collator):
    """Numbers positions through the whole row, as a packer without document bounds does."""

    def __call__(self, rows):
        batch = super().__call__(rows)
        length = batch["input_ids"].shape[1]
        return {**batch, "position_ids": torch.arange(length)[None]}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_documents_that_are_apart_do_not_move_each_other_by_a_bit(tiny_base, attention):
    model = tuned(tiny_base, attention, QuantizationSection()).train()
    assert prove_isolation(model, Collator(0)).max_change == 0.0
    assert model.training


def test_documents_that_see_each_other_are_found_out(tiny_base):
    with pytest.raises(NumericError, match="see each other"):
        prove_isolation(tuned(tiny_base), LeakyCollator(0))


def test_a_base_with_broken_weights_is_not_blamed_on_packing(tiny_base):
    model = tuned(tiny_base)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(NumericError, match="not finite before the first step"):
        prove_isolation(model, Collator(0))


def test_a_model_without_position_ids_is_refused(tmp_path):
    from transformers import BloomConfig, BloomForCausalLM

    BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=64, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="takes no position_ids"):
        check_takes_positions(tuned(tmp_path, "eager"))
