from pathlib import Path

import pytest

from qlora_cli.deploy.record import describe_onto
from qlora_cli.model.tuned import TunedSource
from qlora_cli.recipe.schema import ModelSection, QuantizationSection, Recipe

MODEL = ModelSection(base_model="base")
RECIPE = Recipe.model_validate({"name": "a", "model": {"base_model": "base"}, "data": {"train": "a.jsonl"}})
FP4 = QuantizationSection(quant_type="fp4")


@pytest.mark.parametrize(
    ("source", "onto", "words"),
    [
        (TunedSource(Path("a"), MODEL, FP4, recipe=RECIPE), "dequantized", "dequantized FP4 base, the weights that"),
        (TunedSource(Path("a"), MODEL, FP4, recipe=RECIPE), "original", "original base, not the FP4 one"),
        (TunedSource(Path("a"), MODEL, FP4, base_source="r", recipe=RECIPE), "original", "PiSSA's residual before"),
        (TunedSource(Path("a"), MODEL, recipe=RECIPE), "dequantized", "as it is, the weights that training saw"),
        (TunedSource(Path("a"), MODEL), "dequantized", "an adapter folder does not say whether"),
    ],
)
def test_the_line_says_onto_what_and_why(source, onto, words):
    assert words in describe_onto(source, onto)


def test_the_line_names_experts_that_were_quantized():
    source = TunedSource(Path("a"), MODEL, QuantizationSection(), recipe=RECIPE)
    assert "the dequantized NF4 base, experts included, the" in describe_onto(
        source, "dequantized", has_packed_experts=True
    )
