"""A recipe against a base that is stored quantized."""

from __future__ import annotations

import pytest

from qlora_cli.recipe.stored_rules import check_stored, unquantized_name

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
INT3 = {"quant_method": "qlora_int", "bits": 3, "group_size": 64}
FP8 = {"quant_method": "fp8"}


def conflicts(section, name="org/model-4bit", **recipe):
    model = {"base_model": name, **recipe.pop("model", {})}
    config = {} if section is None else {"quantization_config": section}
    return list(check_stored(config, {"model": model, **recipe}))


def only(found):
    [conflict] = found
    return conflict


def test_a_form_that_can_be_dequantized_says_how():
    found = only(conflicts(FP8))
    assert "stored in FP8, which cannot be trained on as they are" in found.text
    assert "--set model.dequantize=true" in found.hint
    assert conflicts(FP8, model={"dequantize": True}, quantization={"quant_type": "int8"}) == []


@pytest.mark.parametrize("section", [None, NF4])
def test_dequantizing_what_need_not_or_cannot_be_is_refused(section):
    found = only(conflicts(section, model={"dequantize": True}))
    assert found.path == ("model", "dequantize")
    assert found.hint == "take 'model.dequantize' out"


def test_a_form_that_cannot_be_dequantized_stays_refused_and_names_the_original():
    for model in ({}, {"dequantize": True}):
        found = only(conflicts({"quant_method": "gptq", "bits": 4}, "Qwen/Qwen3-8B-GPTQ-Int4", model=model))
        assert found.hint.endswith("--set model.base_model=Qwen/Qwen3-8B")


@pytest.mark.parametrize("init", ["loftq", "calibrated", "pissa"])
@pytest.mark.parametrize("stored", [NF4, INT3], ids=["nf4", "int3"])
def test_inits_that_need_the_original_weights_are_refused(stored, init):
    found = only(conflicts(stored, lora={"init_lora_weights": init}))
    assert f"'lora.init_lora_weights: {init}' needs weights that were not quantized" in found.text
    assert "write `init_lora_weights: default`, or name the original" in found.hint
    assert conflicts(FP8, model={"dequantize": True}, quantization={}, lora={"init_lora_weights": init}) == []


KEPT_INT3 = {
    "quant_method": "qlora_int",
    "bits": 3,
    "group_size": 64,
    "modules_to_not_convert": ["lm_head", "a.down_proj"],
}


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ({}, "--set quantization.method=int"),
        ({"method": "int", "bits": 4}, "--set quantization.bits=3"),
        ({"method": "int", "group_size": 32}, "--set quantization.group_size=64"),
        ({"method": "int", "skip_modules": ["up_proj"]}, "take it out"),
    ],
)
def test_a_base_in_integers_is_taken_as_it_is(asked, hint):
    assert only(conflicts(KEPT_INT3, quantization=asked)).hint.startswith(hint)
    assert (
        conflicts(KEPT_INT3)
        == conflicts(KEPT_INT3, quantization={"method": "int", "skip_modules": ["down_proj"]})
        == []
    )


@pytest.mark.parametrize("part", [{"bits": 5}, {"bits": "3"}, {"group_size": None}])
def test_integers_that_are_not_ours_are_refused(part):
    assert "not known here" in only(conflicts(KEPT_INT3 | part)).text


def test_qa_lora_on_a_plain_base_needs_the_section():
    assert "--set quantization.method=int" in only(conflicts(None, lora={"use_qalora": True})).hint


@pytest.mark.parametrize("init", ["loftq", "calibrated"])
@pytest.mark.parametrize("use_qalora", [False, True])
def test_a_plain_base_that_becomes_integers_has_its_original(init, use_qalora):
    lora = {"init_lora_weights": init, "use_qalora": use_qalora}
    assert conflicts(None, quantization={"method": "int", "bits": 2}, lora=lora) == []


def test_modules_that_the_base_keeps_plain_may_be_named():
    stored = {**NF4, "llm_int8_skip_modules": ["lm_head", "down_proj", "model.layers.0.mlp.up_proj"]}
    assert conflicts(stored, quantization={"skip_modules": ["down_proj"]}) == []
    assert "names 'up_proj'" in only(conflicts(stored, quantization={"skip_modules": ["down_proj", "up_proj"]})).text


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("unsloth/Qwen3-8B-unsloth-bnb-4bit", "unsloth/Qwen3-8B"),
        ("unsloth/gemma-3-4b-it-bnb-4bit", "unsloth/gemma-3-4b-it"),
        ("Qwen/Qwen3-8B-FP8", "Qwen/Qwen3-8B"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int8", "Qwen/Qwen2.5-7B-Instruct"),
        ("RedHatAI/Llama-3.1-8B-Instruct-quantized.w4a16", "RedHatAI/Llama-3.1-8B-Instruct"),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8-dynamic", "RedHatAI/Meta-Llama-3.1-8B-Instruct"),
        ("nvidia/Llama-3.1-8B-Instruct-FP4", "nvidia/Llama-3.1-8B-Instruct"),
        ("openai/gpt-oss-20b", None),
        ("org/awq", None),
        ("deepseek-ai/DeepSeek-V3", None),
    ],
)
def test_names_of_quantized_copies_lead_to_the_original(name, original):
    assert unquantized_name(name) == original


@pytest.mark.parametrize(
    "line", ["base_model: Qwen/Qwen3-8B", 'base_model:\n- "Qwen/Qwen3-8B"', "base_model:\n  - Qwen/Qwen3-8B"]
)
def test_the_model_card_says_it_best(tmp_path, line):
    (tmp_path / "README.md").write_text(f"---\nlicense: mit\n{line}\n---\n# A copy\n")
    assert unquantized_name(str(tmp_path)) == "Qwen/Qwen3-8B"


def test_a_folder_is_named_only_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base-awq").mkdir()
    assert unquantized_name("base-awq") is None
    (tmp_path / "base").mkdir()
    assert unquantized_name("base-awq") == "base"
    assert unquantized_name("base-awq", {"_name_or_path": "Qwen/Qwen3-8B"}) == "Qwen/Qwen3-8B"


def test_a_base_in_integers_has_no_original_to_round_on_rows():
    stored = {"quant_method": "qlora_int", "bits": 4, "group_size": 32, "calibration": "rows"}
    asked = {"method": "int", "bits": 4, "group_size": 32}
    found = only(conflicts(stored, quantization={**asked, "calibration": "rows"}))
    assert "'quantization.calibration: rows' needs weights that were not quantized" in found.text
    assert "take 'quantization.calibration' out" in found.hint
    assert conflicts(stored, quantization={**asked, "calibration": "none"}) == []
