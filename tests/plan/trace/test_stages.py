"""The layers of a model are found whatever it calls them."""

from __future__ import annotations

import pytest

from qlora_cli.plan.trace.fake_model import meta_model, skeleton
from qlora_cli.plan.trace.stages import decoder_layers
from tests.model.bases import MULTIMODAL
from tests.plan.bases import CONFIGS, config_of, request_for


@pytest.mark.parametrize("name", CONFIGS)
def test_the_layers_are_as_many_as_the_configuration_says(name):
    request = request_for(config_of(name, 3))
    assert len(decoder_layers(skeleton(request))) == 3
    assert len(decoder_layers(meta_model(request))) == 3


@pytest.mark.parametrize("name", MULTIMODAL)
def test_the_layers_of_a_vision_tower_are_none_of_them(name):
    config = MULTIMODAL[name]().config
    vision = config.vision_config
    for number_of_layers in ("num_hidden_layers", "depth"):
        if hasattr(vision, number_of_layers):
            setattr(vision, number_of_layers, 5)
    request = request_for(config)
    layers = decoder_layers(skeleton(request))
    assert len(layers) == len(decoder_layers(meta_model(request))) == 2
    assert "Vision" not in type(layers[0]).__name__
