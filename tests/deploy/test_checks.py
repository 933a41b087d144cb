"""What `qlora merge` does not fold is refused by its name, and what the hint says to type leads to the same model."""

from __future__ import annotations

import shlex
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from qlora_cli.deploy.checks import refuse_unmergeable
from qlora_cli.errors import ArgumentError
from qlora_cli.model.adapter import load_adapter
from qlora_cli.model.tuned import find_tuned
from tests.model.foreign_adapters import ADAPTERS, METHODS, lora, plain_base, save_adapter_of

IDS = torch.arange(1, 40)[None]
PARTS = ("init mica", "qalora")
PROMPTS = ("PromptTuning", "PromptEncoder", "PrefixTuning", "CPT", "AdaptionPrompt")
FOLDED = ("AdaLora", "TrainableTokens")
WITH_PEFT = (*PARTS, *(name for name in METHODS if name not in (*PROMPTS, *FOLDED)))


def refusal(folder):
    with pytest.raises(ArgumentError) as caught:
        refuse_unmergeable(find_tuned(folder))
    (problem,) = caught.value.problems
    assert problem.place == str(folder)
    assert "inert" not in str(problem)
    return problem


@pytest.mark.parametrize("name", WITH_PEFT)
def test_the_command_that_the_hint_names_merges_into_the_same_model(name, tiny_base, tmp_path, monkeypatch):
    save_adapter_of(tiny_base, ADAPTERS[name], tmp_path / "adapter")
    hint = refusal(tmp_path / "adapter").hint
    _, _, code, *arguments = shlex.split(hint.partition("`")[2].partition("`")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["-c", *arguments])
    exec(code, {})
    with torch.no_grad():
        expected = load_adapter(plain_base(tiny_base), tmp_path / "adapter")(IDS).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "MERGED", dtype=torch.float32)(IDS).logits
    assert (expected - merged).abs().max() < 1e-4


def test_where_peft_does_not_merge_into_the_same_model_either_the_hint_does_not_send_there(tiny_base, tmp_path):
    hint = refusal(save_adapter_of(tiny_base, ADAPTERS["layer_replication"], tmp_path)).hint
    assert "python -c" not in hint
    assert f"unmerged it works: `qlora generate {tmp_path}" in hint


@pytest.mark.parametrize("name", PROMPTS)
def test_what_no_weight_holds_is_said_to_have_nothing_to_merge(name, tiny_base, tmp_path):
    problem = refusal(save_adapter_of(tiny_base, ADAPTERS[name], tmp_path))
    assert "no weight of the base holds" in problem.text
    assert f"qlora generate {tmp_path}" in problem.hint


@pytest.mark.parametrize(
    "config", [lora(), lora(use_dora=True), lora(init_lora_weights="pissa"), lora(bias="all"), METHODS["AdaLora"]]
)
def test_updates_of_weight_matrices_are_not_refused(config, tiny_base, tmp_path):
    refuse_unmergeable(find_tuned(save_adapter_of(tiny_base, config, tmp_path)))
