"""Which integers of others can be taken over, by the config.json of their releases; and the recipe on them."""

from __future__ import annotations

import pytest

from qlora_cli.recipe.foreign_integers import integers_of
from qlora_cli.recipe.rules import check_rules
from qlora_cli.recipe.stored_rules import as_stored, check_stored
from qlora_cli.recipe.stored_weights import stored_weights

WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128, "dynamic": False}
GROUP = {"targets": ["Linear"], "weights": WEIGHTS, "input_activations": None}
W4A16 = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": GROUP}}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}


def w4a16(**weights):
    return W4A16 | {"config_groups": {"group_0": GROUP | {"weights": WEIGHTS | weights}}}


def conflicts(section, quantization=None, *, dequantize=False, **recipe):
    written = {"model": {"base_model": "org/model", "dequantize": dequantize}, "quantization": quantization, **recipe}
    return list(check_stored({"quantization_config": section} if section else {}, written))


@pytest.mark.parametrize(
    "section",
    [
        W4A16,
        w4a16(group_size=32, actorder="static"),
        w4a16(strategy="channel", group_size=None),
        GPTQ,
        GPTQ | {"group_size": -1, "checkpoint_format": "gptq_v2", "sym": False},
        GPTQ | {"bits": 3, "group_size": 32, "desc_act": True, "static_groups": True},
        GPTQ | {"dynamic": {"-:.*down_proj": {}}},
    ],
)
def test_what_neighbours_share_is_taken_over(section):
    stored = stored_weights({"quantization_config": section})
    assert stored.obstacle is None
    assert stored.is_taken_over
    assert conflicts(section) == []
    resolved = as_stored(None, {"quantization_config": section})
    assert conflicts(section, resolved.model_dump(mode="json", exclude_none=True)) == []
    assert resolved.kind == ("w4a16" if section["quant_method"] != "gptq" else f"int{section['bits']}")


@pytest.mark.parametrize(
    ("section", "why"),
    [
        (W4A16 | {"format": "nvfp4-pack-quantized"}, "its format is nvfp4-pack-quantized, and not pack-quantized"),
        (w4a16(num_bits=8), "its weights are not 4-bit integers"),
        (w4a16(symmetric=False), "it has zero points"),
        (w4a16(actorder="group"), "actorder: its columns are sorted"),
        (w4a16(group_size=16), "its groups are of 16 weights, and not of 32, 64 or 128"),
        (w4a16(strategy="tensor_group", group_size=32), "its strategy is tensor_group"),
        (W4A16 | {"config_groups": {"a": GROUP, "b": GROUP | {"weights": WEIGHTS | {"num_bits": 8}}}}, "several ways"),
        (W4A16 | {"config_groups": {"a": GROUP | {"input_activations": {"num_bits": 8}}}}, "it rounds activations too"),
        (W4A16 | {"kv_cache_scheme": {"num_bits": 8}}, "it rounds keys and values too"),
        (W4A16 | {"transform_config": {"config_groups": {"u": {}}}}, "it transforms its inputs"),
        (W4A16 | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "its weights are sparse"),
        (GPTQ | {"bits": 8}, "it has 8 bits, and not 4, 3 or 2"),
        (GPTQ | {"group_size": 1024}, "its groups are of 1024 weights"),
        (GPTQ | {"desc_act": True}, "desc_act: its columns are sorted"),
        (GPTQ | {"checkpoint_format": "gptq_p"}, "its format is gptq_p, and not gptq or gptq_v2"),
        (GPTQ | {"is_marlin_format": True}, "its format is marlin"),
        (GPTQ | {"pack_dtype": "int64"}, "its codes are not packed in int32"),
        (GPTQ | {"dynamic": {"+:.*down_proj": {"bits": 8}}}, "dynamic: its layers are stored in several ways"),
    ],
)
def test_what_cannot_be_taken_over_says_why_and_how_to_go_on(section, why):
    assert why in integers_of(section["quant_method"], section).obstacle
    [found] = conflicts(section)
    assert why in found.text
    if section["quant_method"] == "gptq":
        assert "name the original, unquantized model" in found.hint
    else:
        assert found.hint.startswith("--set model.dequantize=true")
        assert conflicts(section, {}, dequantize=True) == []


@pytest.mark.parametrize(
    ("quantization", "text", "hint"),
    [
        (
            {},
            "'quantization.method: bitsandbytes' cannot be had",
            "--set quantization.method=w4a16, or --set model.",
        ),
        ({"method": "int", "bits": 4}, "'quantization.method: int' cannot be had", "--set quantization.method=w4a16"),
        (
            {"method": "w4a16", "group_size": 32},
            "stored in W4A16 in groups of 128",
            "--set quantization.group_size=128",
        ),
        ({"method": "w4a16", "skip_modules": ["down_proj"]}, "is decided in the base", "take 'quantization.skip"),
    ],
)
def test_another_storage_than_the_base_has_is_refused(quantization, text, hint):
    [found] = conflicts(W4A16, quantization)
    assert text in found.text
    assert found.hint.startswith(hint)


def test_dequantized_the_recipe_decides_and_codes_cannot_be_kept():
    assert conflicts(W4A16, {"quant_type": "nf4"}, dequantize=True) == []
    config = {"quantization_config": W4A16}
    assert as_stored(None, config, dequantize=True) is None
    assert "there are none" in conflicts(W4A16, {"method": "w4a16"}, dequantize=True)[0].text
    [found] = conflicts(GPTQ, dequantize=True)
    assert found.hint == "take 'model.dequantize' out"


@pytest.mark.parametrize(
    "section", [None, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, GPTQ], ids=["plain", "nf4", "gptq"]
)
def test_w4a16_is_asked_of_a_base_that_has_it(section):
    [found] = conflicts(section, {"method": "w4a16"})
    assert found.path == ("quantization", "method")
    assert "w4a16" in found.text


@pytest.mark.parametrize("section", [w4a16(strategy="channel", group_size=None), GPTQ | {"group_size": -1}])
def test_a_row_is_no_group_of_qa_lora(section):
    [found] = conflicts(section, lora={"use_qalora": True})
    assert "with a scale a row" in found.text


@pytest.mark.parametrize("init", ["loftq", "calibrated", "pissa"])
def test_what_needs_the_original_weights_is_refused(init):
    [found] = conflicts(W4A16, lora={"init_lora_weights": init})
    assert "needs weights that were not quantized" in found.text


@pytest.mark.parametrize(
    ("keys", "text"),
    [({"bits": 3}, "which has 4"), ({"quant_type": "nf4"}, "has no effect"), ({"experts": True}, "linear layers")],
)
def test_keys_of_other_methods_are_refused_without_the_base(keys, text):
    [found] = check_rules({"quantization": {"method": "w4a16"} | keys})
    assert text in found.text
