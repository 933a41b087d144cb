import json

import pytest
import torch
from safetensors.torch import save_file

from qlora_cli.deploy.formats.prediction_layers import holds_prediction_layers


@pytest.mark.parametrize(
    ("config", "names", "is_there"),
    [
        ({"num_hidden_layers": 2}, ["model.layers.1.mlp.up_proj.weight"], False),
        ({"num_hidden_layers": 2}, ["model.layers.1.mlp.up_proj.weight", "mtp.fc.weight"], True),
        ({"num_hidden_layers": 2, "num_nextn_predict_layers": 1}, ["model.layers.2.eh_proj.weight"], True),
        ({"text_config": {"num_hidden_layers": 2, "mtp_num_hidden_layers": 1}}, ["model.language_model.norm"], False),
        ({"text_config": {"num_hidden_layers": 2}}, ["model.language_model.layers.2.norm"], True),
        ({"text_config": {"num_hidden_layers": 2}}, ["model.vision_tower.encoder.layers.20.norm"], False),
        ({"text_config": {"num_hidden_layers": 2}}, ["model.visual.layers.20.norm"], False),
    ],
)
def test_what_counts_are_the_tensors_and_not_the_configuration(config, names, is_there, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"model.embed_tokens.weight": torch.zeros(2)}, tmp_path / "model-1.safetensors")
    save_file({name: torch.zeros(2) for name in names}, tmp_path / "model-2.safetensors")
    assert holds_prediction_layers(tmp_path) is is_there
