"""The layers of a model are found whatever it calls them."""

from __future__ import annotations

import pytest

from qlora_cli.plan.trace.fake_model import meta_model, skeleton
from qlora_cli.plan.trace.stages import decoder_layers
from tests.plan.bases import CONFIGS, config_of, request_for


@pytest.mark.parametrize("name", CONFIGS)
def test_the_layers_are_as_many_as_the_configuration_says(name):
    request = request_for(config_of(name, 3))
    assert len(decoder_layers(skeleton(request))) == 3
    assert len(decoder_layers(meta_model(request))) == 3
