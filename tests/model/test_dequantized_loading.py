"""`model.dequantize`: a base stored in FP8 or MXFP4 is, once loaded, the base of the plain weights that it means."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoModelForCausalLM

from qlora_cli.errors import RecipeError
from qlora_cli.model.base import load_base
from qlora_cli.model.dequantized_loading import ONE_BY_ONE, DequantizingQuantizer, dequantizing_config
from qlora_cli.recipe.schema import ModelSection, QuantizationSection
from tests.model.packed_bases import packed_base

KINDS = ("fp8", "fp8 experts", "mxfp4")
IDS = torch.arange(48).reshape(2, 24)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Kind -> the packed folder and the plain one."""
    return {kind: packed_base(kind, tmp_path_factory.mktemp("bases")) for kind in KINDS}


def load(folder, quantization, *, dtype="bfloat16", **model):
    section = ModelSection(base_model=str(folder), dtype=dtype, attn_implementation="eager", **model)
    return load_base(section, quantization)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "quantization",
    [
        None,
        QuantizationSection(),
        QuantizationSection(quant_type="int8"),
        QuantizationSection(quant_type="fp4", double_quant=False, skip_modules=("o_proj",)),
    ],
    ids=["16 bit", "nf4", "int8", "fp4"],
)
def test_it_is_the_base_of_its_plain_weights(bases, kind, quantization):
    packed, plain = (load(folder, quantization, dequantize=folder.name == "packed") for folder in bases[kind])
    wanted = dict(plain.named_parameters())
    assert dict(packed.named_parameters()).keys() == wanted.keys()
    for name, parameter in packed.named_parameters():
        assert parameter.dtype == wanted[name].dtype, name
        assert torch.equal(parameter, wanted[name]), name
    assert {name: type(module).__name__ for name, module in packed.named_modules()} == {
        name: type(module).__name__ for name, module in plain.named_modules()
    }
    with torch.no_grad():
        assert torch.equal(packed(IDS).logits, plain(IDS).logits)
    assert getattr(packed, "is_quantized", False) == (quantization is not None)


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_is_in_the_dtype_of_the_recipe(bases, kind):
    """transformers alone leaves norms and embeddings in the dtype in which they are stored."""
    base = load(bases[kind][0], None, dtype="float32", dequantize=True)
    assert {parameter.dtype for parameter in base.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", KINDS)
def test_saved_it_is_plain(bases, kind, tmp_path):
    load(bases[kind][0], None, dequantize=True).save_pretrained(tmp_path)
    again, plain = load(tmp_path, None), load(bases[kind][1], None)
    assert torch.equal(again(IDS).logits, plain(IDS).logits)


def test_parameters_are_read_one_by_one_and_only_then(bases, monkeypatch):
    seen = []
    monkeypatch.delenv(ONE_BY_ONE, raising=False)
    load_as_it_is = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM,
        "from_pretrained",
        lambda *args, **kwargs: seen.append(os.environ.get(ONE_BY_ONE)) or load_as_it_is(*args, **kwargs),
    )
    load(bases["fp8"][0], QuantizationSection(), dequantize=True)
    load(bases["fp8"][1], QuantizationSection())
    assert seen == ["1", None]
    assert ONE_BY_ONE not in os.environ


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_key_it_is_refused(bases, kind):
    with pytest.raises(RecipeError, match=r"cannot be trained on as they are[\s\S]*--set model.dequantize=true"):
        load(bases[kind][0], QuantizationSection())


@pytest.mark.skipif(find_spec("compressed_tensors") is not None, reason="the package is installed")
def test_a_missing_package_is_named(bases):
    config = load(bases["fp8"][1], None).config
    config.quantization_config = {"quant_method": "compressed-tensors", "config_groups": {}}
    with pytest.raises(RecipeError, match="pip install compressed-tensors"):
        dequantizing_config(config, None, torch.bfloat16)


@pytest.mark.parametrize("height", [320, 192])
def test_blocks_that_are_cut_short_keep_their_scale(bases, height):
    """192 rows in blocks of 128 are not two blocks of 96, as transformers would read them."""
    config = load(bases["fp8"][1], None).config
    config.quantization_config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    quantizer = DequantizingQuantizer(dequantizing_config(config, None, torch.float32))
    conversions = quantizer.update_weight_conversions([], torch.nn.Module())
    [converter] = [each for each in conversions if "weight" in each.source_patterns]
    weight = torch.ones(height, 128).to(torch.float8_e4m3fn)
    scales = torch.arange(1.0, 1 + -(-height // 128))[:, None]
    [value] = converter.operations[0].convert({"weight": [weight], "weight_scale_inv": [scales]}).values()
    assert value[:, 0].tolist() == [1.0 + row // 128 for row in range(height)]
