"""Biases that an adapter brings for layers that have none in the base, and the configuration that has room for them."""

from __future__ import annotations

import copy

import torch
from transformers import PreTrainedModel

from qlora_cli.deploy.fold_plan import FoldPlan
from qlora_cli.errors import ArgumentError

Shapes = dict[str, tuple[int, ...]]


def with_new_biases(plain: PreTrainedModel, plan: FoldPlan) -> tuple[PreTrainedModel, dict[str, bool]]:
    """A model of the base's class that has biases where the plan brings some, and the keys that make it so.

    A key such as Llama's attention_bias gives biases to more layers than one. Those that the adapter has none for
    are entered into the plan as zeros.

    Args:
        plain: the base's model on the meta device.
        plan: its `new_biases` may grow.

    Returns:
        The model, and the keys of its text model's configuration that differ from the base's.

    Raises:
        ArgumentError: if no key of the base's configuration gives biases to those layers.
    """
    if not plan.new_biases:
        return plain, {}
    before, missing = _shapes(plain), plan.new_biases.keys()
    settings = {}
    for key, value in plain.config.get_text_config().to_dict().items():
        if value is False and "bias" in key and _new_biases(before, _with_settings(plain, {key: True})) & missing:
            settings[key] = True
    model = _with_settings(plain, settings)
    if without := sorted(missing - _new_biases(before, model)):
        raise ArgumentError(
            f"the adapter brings {len(plan.new_biases)} biases (lora_bias), and no key of "
            f"{type(plain.config).__name__} gives one to '{without[0].removesuffix('.bias')}'",
            hint="no folder can hold them for this base; use the adapter unmerged: generate, chat and eval take it",
        )
    for name, shape in _shapes(model).items():
        if name not in before:
            plan.new_biases.setdefault(name, torch.zeros(shape))
    return model, settings


def _with_settings(plain: PreTrainedModel, settings: dict[str, bool]) -> PreTrainedModel:
    config = copy.deepcopy(plain.config)
    for key, value in settings.items():
        setattr(config.get_text_config(), key, value)
    with torch.device("meta"):
        return type(plain)(config)


def _new_biases(before: Shapes, model: PreTrainedModel) -> set[str]:
    """Names of biases that the model has and had not before; none where anything else became different too."""
    after = _shapes(model)
    added = after.keys() - before.keys()
    is_same_else = all(after.get(name) == shape for name, shape in before.items())
    return added if is_same_else and all(name.endswith(".bias") for name in added) else set()


def _shapes(model: PreTrainedModel) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
