import pytest
import torch
from torch import nn

from qlora_cli.model.dequantize import dequantized_weight, is_quantized, no_outlier_columns
from tests.deploy.models import load_base, save_llama


def layer_of(folder, quantization):
    return load_base(folder, quantization).model.layers[0].mlp.up_proj


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("llama"), tie_word_embeddings=False)


@pytest.mark.parametrize(("quantization", "error"), [("nf4", 0.15), ("fp4", 0.2), ("int8", 0.02)])
def test_stored_weight_is_near_the_original(folder, quantization, error):
    original = layer_of(folder, "none").weight
    layer = layer_of(folder, quantization)
    assert is_quantized(layer)
    assert 0 < (dequantized_weight(layer) - original).norm() < error * original.norm()


@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
def test_it_is_the_weight_that_the_forward_pass_multiplies_by(folder, quantization):
    layer = layer_of(folder, quantization)
    x = torch.randn(5, 64)
    assert torch.allclose(x @ dequantized_weight(layer).T, layer(x), atol=1e-5)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_forward_pass_does_not_change_it(folder, quantization):
    layer = layer_of(folder, quantization)
    before = dequantized_weight(layer)
    with torch.no_grad():
        layer(torch.randn(5, 64))
    assert torch.equal(before, dequantized_weight(layer))


def test_a_plain_layer_is_not_quantized():
    assert not is_quantized(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="Linear is not quantized"):
        dequantized_weight(nn.Linear(2, 2))


def test_without_outlier_columns_a_row_of_int8_depends_on_itself_alone(folder):
    layer = layer_of(folder, "int8").eval()
    rows = torch.randn(2, 64)
    beside_an_outlier = torch.stack([rows[0], 100 * rows[1]])
    with torch.no_grad():
        assert not torch.equal(layer(rows)[0], layer(beside_an_outlier)[0])
        with no_outlier_columns(layer):
            assert torch.equal(layer(rows)[0], layer(beside_an_outlier)[0])


def test_the_threshold_of_int8_is_back_whatever_ends_the_block(folder):
    layer = layer_of(folder, "int8")
    with pytest.raises(KeyError), no_outlier_columns(layer):
        assert layer.state.threshold == 0
        raise KeyError
    assert layer.state.threshold == 6.0
