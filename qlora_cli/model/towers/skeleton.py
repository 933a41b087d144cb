"""A base on the meta device: its modules, their names and shapes, and no memory behind them."""

from __future__ import annotations

import copy
import warnings

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers.base import get_keys_to_not_convert

from qlora_cli.model.towers.auto_class import AutoClass


def bare_skeleton(auto: AutoClass, config: PreTrainedConfig, *, trust_code: bool | None = None) -> PreTrainedModel:
    """The model that `auto` makes of `config`, in bfloat16 and by plain attention, which every base has.

    Args:
        auto: class that chooses the model's.
        config: of the base.
        trust_code: code that the base brings along may be run.

    Raises:
        ValueError: if the auto class does not know the configuration; other errors as the base's code raises them.
    """
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: PreTrainedModel = auto.from_config(
            copy.deepcopy(config),
            dtype=torch.bfloat16,
            attn_implementation="eager",
            trust_remote_code=trust_code,
        )
    return model.eval()


def kept_modules(skeleton: PreTrainedModel) -> set[str]:
    """Names of the modules that `transformers` leaves unquantized by itself.

    One of them is the model's last parameter, which it looks for before it ties the output head: where a tied head is
    last, the skeleton, whose weights are tied, would have it take the one before, such as Gemma 4's image projection.
    """
    kept = set(get_keys_to_not_convert(skeleton))
    last, last_before_ties = (
        list(skeleton.named_parameters(remove_duplicate=is_tied))[-1][0] for is_tied in (True, False)
    )
    return kept if last == last_before_ties else kept - {last.removesuffix(".weight")}
