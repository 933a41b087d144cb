"""Forms of stored weights as the config.json of published models names them."""

from __future__ import annotations

import pytest
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.utils.quantization_config import QuantizationMethod

from qlora_cli.recipe.stored_weights import DEQUANTIZED_ON_LOAD, stored_weights


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}, "GPTQ in 4 bit"),
        ({"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}, "AWQ in 4 bit"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"}, "FP8"),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, "MXFP4"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
        ({"config_groups": {"group_0": {}}, "format": "float-quantized"}, "compressed-tensors"),
        ({"quant_algo": "NVFP4", "producer": {"name": "modelopt"}}, "NVFP4"),
        ({"quant_method": "auto-round", "bits": 2}, "auto-round in 2 bit"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4 by bitsandbytes"),
        ({"load_in_8bit": True, "_load_in_8bit": True}, "int8 by bitsandbytes"),
        ({"bits": 4}, "a form without a name in 4 bit"),
    ],
)
@pytest.mark.parametrize("place", ["top", "text", "older"])
def test_a_form_is_named(section, words, place):
    placed = {
        "top": {"quantization_config": section},
        "text": {"text_config": {"quantization_config": section}},
        "older": {"compression_config": section},
    }
    assert str(stored_weights(placed[place])) == words


@pytest.mark.parametrize("config", [{}, {"quantization_config": None}, {"quantization_config": {}}, {"text_config": 1}])
def test_plain_weights_have_none(config):
    assert stored_weights(config) is None


def test_what_can_be_dequantized_is_what_transformers_has_an_operation_for():
    """metal has one too, but its kernels run on Apple's GPUs only."""
    known = {method.value for method in QuantizationMethod} | {"mxfp8"}
    able = set()
    for method, quantizer in AUTO_QUANTIZER_MAPPING.items():
        constants = quantizer.get_load_operations.__code__.co_consts
        names = {name for each in constants for name in (each if isinstance(each, tuple) else (each,))}
        if "dequantize" in names:
            able.add(method)
    assert able - {"metal"} == set(DEQUANTIZED_ON_LOAD)
    assert set(DEQUANTIZED_ON_LOAD) <= known
