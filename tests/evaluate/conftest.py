"""A tuned model small enough for tests: a random Llama in NF4 with a LoRA adapter that is not inert."""

from __future__ import annotations

import pytest
import torch

from qlora_cli.model.adapter import attach_adapter
from qlora_cli.model.base import load_base
from qlora_cli.model.tokenizer import load_tokenizer
from qlora_cli.model.tuned import Tuned, TunedSource
from qlora_cli.recipe.schema import LoraSection, ModelSection, QuantizationSection


@pytest.fixture(scope="session")
def tuned(tiny_base):
    section = ModelSection(base_model=str(tiny_base))
    model = attach_adapter(load_base(section, QuantizationSection()), LoraSection(r=4)).eval()
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return Tuned(model, load_tokenizer(section), TunedSource(tiny_base, section))
