"""Layers that predict further tokens (MTP, "nextn"), which a base may have beside those that answers come from."""

from __future__ import annotations

import re
from pathlib import Path

from qlora_cli.deploy.checkpoint import read_header
from qlora_cli.run.files import read_json_object

LAYER = re.compile(r"(?:model\.)?(?:language_model\.)?(?:model\.)?layers\.(?P<number>\d+)\.")
"""How the name of a tensor in a layer of the language model begins."""


def holds_prediction_layers(folder: Path) -> bool:
    """Whether a model's files hold such layers: they are called `mtp`, or come after the last layer of config.json.

    Models that transformers has saved have lost them, and their config.json names them all the same. llama.cpp's
    converter goes by config.json, and llama.cpp cannot open the file that it writes then (llama.cpp#24737, #26916).
    """
    config = read_json_object(folder / "config.json", hint="merge again with `qlora merge --force`")
    num_layers = (config.get("text_config") or config).get("num_hidden_layers")
    for file in folder.glob("*.safetensors"):
        header, _ = read_header(file)
        for name in header:
            layer = LAYER.match(name)
            is_behind = layer is not None and num_layers is not None and int(layer["number"]) >= num_layers
            if is_behind or name.startswith(("mtp.", "model.mtp.")):
                return True
    return False
