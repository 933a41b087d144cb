"""Formats that keep the codes of a model in integers, by arithmetic of the test's own."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from qlora_cli.deploy.engines.scripts.gguf_codes import Layers, blocks, order_of_rows, weights
from qlora_cli.deploy.formats.format import WriteJob
from qlora_cli.deploy.formats.table import FORMATS
from qlora_cli.deploy.plain_copy import write_plain_copy
from qlora_cli.model.tuned import TunedSource
from qlora_cli.recipe.schema import ModelSection
from tests.deploy.integers import dequantized, save_integers, unpack

KINDS = [(4, 32), (3, 64), (2, 32)]


@pytest.fixture(params=KINDS, ids=lambda kind: f"int{kind[0]}-g{kind[1]}")
def merged(request, llama_folder, tmp_path):
    """A merged Llama in integers, and its bits."""
    bits, group_size = request.param
    return save_integers(llama_folder, tmp_path / "merged", bits=bits, group_size=group_size, is_merged=True), bits


def layers_of(tensors):
    return [key.removesuffix(".codes") for key in tensors if key.endswith(".codes")]


def test_mlx_gets_the_codes_and_float32_scales_and_biases(merged, tmp_path):
    folder, bits = merged
    out = tmp_path / "out"
    out.mkdir()
    FORMATS["mlx"].codes.write(WriteJob(folder, out, TunedSource(folder, ModelSection(base_model=str(folder))), []))
    before, after = load_file(folder / "model.safetensors"), load_file(out / "model.safetensors")
    for name in (layers := layers_of(before)):
        words = after.pop(f"{name}.weight")
        assert words.dtype == torch.uint32
        assert words.view(torch.uint8).equal(before.pop(f"{name}.codes"))
        for ours, theirs in (("scales", "scales"), ("offsets", "biases")):
            assert torch.equal(after.pop(f"{name}.{theirs}"), before.pop(f"{name}.{ours}").float())
    assert len(layers) == 14
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key].to(before[key].dtype)) for key in before)
    assert {after[key].dtype for key in after if key.endswith("norm.weight")} == {torch.float32}
    config = json.loads((out / "config.json").read_text())
    assert config["quantization"] == {"group_size": before_group(folder), "bits": bits}
    assert "quantization_config" not in config


def before_group(folder):
    return json.loads((folder / "config.json").read_text())["quantization_config"]["group_size"]


def test_the_plain_copy_has_the_numbers_that_the_integers_stand_for(merged, tmp_path):
    folder, bits = merged
    write_plain_copy(folder, tmp_path / "plain", torch.float32, trust_code=False)
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    expected = dequantized(folder, bits)
    assert plain.keys() == expected.keys()
    assert all(torch.equal(plain[key], expected[key]) for key in plain)
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())


def read_q4_1(block):
    """A block of 20 bytes, as ggml reads it (Q4_1)."""
    d, m = np.frombuffer(block[:4], np.float16).astype(np.float32)
    codes = [byte & 15 for byte in block[4:]] + [byte >> 4 for byte in block[4:]]
    return codes, d, m


def test_q4_1_blocks_hold_the_codes_of_training(merged):
    folder, bits = merged
    stored, layers = load_file(folder / "model.safetensors"), Layers(folder, bits)
    assert sorted(layers.names) == sorted(layers_of(stored))
    name = layers.names[0]
    codes, scales, offsets = layers.parts(name)
    expected = unpack(stored[f"{name}.codes"], bits)
    assert codes.tolist() == expected
    repeats = before_group(folder) // 32
    for row, packed in list(enumerate(blocks(codes, scales, offsets)))[:5]:
        found = [read_q4_1(bytes(packed[start : start + 20])) for start in range(0, len(packed), 20)]
        assert [code for codes, _, _ in found for code in codes] == expected[row]
        for index, (_, d, m) in enumerate(found):
            assert d == scales[row, index // repeats]
            assert m == offsets[row, index // repeats].astype(np.float16)


def test_rows_are_found_in_another_order_and_a_changed_one_is_not():
    codes = np.array([[0, 1], [2, 3], [0, 1], [1, 0]], np.uint8)
    ones = np.ones((4, 1), np.float32)
    expected = weights(codes, ones, -ones)
    assert expected.tolist() == [[-1, 0], [1, 2], [-1, 0], [0, -1]]
    assert order_of_rows(expected[[3, 0, 2, 1]], expected) == [3, 0, 2, 1]
    assert order_of_rows(expected * 2, expected) is None
