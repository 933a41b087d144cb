"""A base on the meta device: its modules, their names and shapes, and no memory behind them."""

from __future__ import annotations

import copy
import warnings

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from qlora_cli.model.towers.auto_class import AutoClass


def bare_skeleton(auto: AutoClass, config: PreTrainedConfig) -> PreTrainedModel:
    """The model that `auto` makes of `config`, in bfloat16 and by plain attention, which every base has.

    Raises:
        ValueError: if the auto class does not know the configuration; other errors as the base's code raises them.
    """
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: PreTrainedModel = auto.from_config(
            copy.deepcopy(config), dtype=torch.bfloat16, attn_implementation="eager"
        )
    return model.eval()
