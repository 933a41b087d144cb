"""Merges that must not happen."""

from __future__ import annotations

import json

import pytest

from qlora_cli.deploy.checks import refuse_no_original
from qlora_cli.errors import ArgumentError
from qlora_cli.model.tuned import TunedSource
from qlora_cli.recipe.schema import ModelSection


@pytest.mark.parametrize(
    ("section", "onto", "is_refused"),
    [
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "original", True),
        ({"load_in_8bit": True}, "original", True),
        ({"load_in_8bit": True}, "dequantized", False),
        ({"quant_method": "fp8"}, "original", False),
        (None, "original", False),
    ],
)
def test_weights_that_the_base_does_not_hold_cannot_be_merged_onto(tmp_path, section, onto, is_refused):
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": section}))
    source = TunedSource(tmp_path, ModelSection(base_model=str(tmp_path)))
    if not is_refused:
        refuse_no_original(source, onto)
        return
    with pytest.raises(ArgumentError, match=r"holds its weights in \w+ by bitsandbytes only[\s\S]*leave --onto out"):
        refuse_no_original(source, onto)
