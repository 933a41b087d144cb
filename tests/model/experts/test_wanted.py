"""How experts are stored, in a line that people read."""

from __future__ import annotations

import pytest

from qlora_cli.model.base import load_base
from qlora_cli.model.experts.wanted import experts_in_words
from qlora_cli.recipe.schema import QuantizationSection
from tests.model.experts.bases import CPU, made

EXPERTS = 2 * 4 * 3 * 128 * 256
"""Of two layers: 4 experts of three matrices."""


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ({}, f"experts: {EXPERTS:,} parameters in 4 fused weights, in NF4"),
        (
            {"quant_type": "int8"},
            f"experts: {EXPERTS:,} parameters in 4 fused weights stay in float32, since int8 is for linear layers only",
        ),
        (
            {"experts": False},
            f"experts: {EXPERTS:,} parameters in 4 fused weights stay in float32, as quantization.experts says",
        ),
        (
            {"quant_type": "fp4", "skip_modules": ["gate_up_proj"]},
            f"experts: {EXPERTS // 3:,} parameters in 2 fused weights, in FP4; "
            f"{2 * EXPERTS // 3:,} parameters in 2 fused weights stay in float32",
        ),
    ],
)
def test_the_line_says_what_was_loaded(tmp_path, quantization, words):
    section = QuantizationSection.model_validate(quantization)
    assert experts_in_words(load_base(made("mixtral", tmp_path), section, device=CPU), section) == words


def test_there_is_nothing_to_say_of_other_bases(tmp_path):
    assert experts_in_words(load_base(made("llama", tmp_path), QuantizationSection()), QuantizationSection()) == ""
    section = made("mixtral", tmp_path / "mixture")
    assert experts_in_words(load_base(section, None), None) == ""
