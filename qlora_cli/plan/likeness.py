"""A configuration to plan with where the base's own cannot be had: a Llama of the size in its name."""

from __future__ import annotations

import re

from transformers import PreTrainedConfig

from qlora_cli.errors import RecipeError
from qlora_cli.model.at_hand import UnreachableBaseError
from qlora_cli.model.base import read_config
from qlora_cli.plan.sketch import sketch_config
from qlora_cli.recipe.schema import ModelSection

SHAPES = {0.5e9: (1024, 16), 1.5e9: (2048, 16), 3e9: (3072, 26), 8e9: (4096, 32), 14e9: (5120, 40), 33e9: (6656, 60)}
"""Parameters of a Llama-like model -> its width and layers, for a base of which only the size is known."""

LARGEST_SHAPE = (8192, 80)

SKETCH_OPTIONS = "--params 8e9 --hidden 4096 --layers 32"


def config_or_sketch(model: ModelSection) -> tuple[PreTrainedConfig, str]:
    """The base's configuration, or a sketch by the size in its name, and what it is in words.

    Raises:
        RecipeError: if neither the configuration nor the size is known.
    """
    try:
        return read_config(model), "its config.json"
    except RecipeError as error:
        config = _sketch(model.base_model)
        if config is None:
            [problem, *_] = error.problems
            hint = f"{problem.hint}; without --gpu a recipe is written for it anyway"
            raise type(error)(problem.text, hint=hint, place=problem.place) from error
        return config, "a Llama of the size in its name (its config.json is not available)"


def config_to_plan(model: ModelSection) -> tuple[PreTrainedConfig, str]:
    """The base's configuration, or where the Hub cannot be asked for it a sketch; and what to say of the sketch.

    Raises:
        RecipeError: if the base cannot be read, or is out of reach and has no size in its name.
    """
    try:
        return read_config(model), ""
    except UnreachableBaseError as error:
        [problem] = error.problems
        config = _sketch(model.base_model)
        if config is None:
            hint = f"{problem.hint}; or plan a base of its size: `qlora plan {SKETCH_OPTIONS}`"
            raise UnreachableBaseError(problem.text, hint=hint) from error
        note = (
            f"the config.json of {model.base_model} is not on this machine and cannot be fetched, so all figures are "
            f"those of a Llama of the size in its name: {config.num_hidden_layers} layers, {config.hidden_size:,} wide"
        )
        return config, note


def _sketch(name: str) -> PreTrainedConfig | None:
    """A Llama of the size in the name of a base; None where it has none."""
    num_params = params_in_name(name)
    if num_params is None:
        return None
    near = min(SHAPES, key=lambda size: abs(size - num_params))
    hidden, layers = SHAPES[near] if num_params < 50e9 else LARGEST_SHAPE
    return sketch_config(int(num_params), hidden_size=hidden, num_layers=layers)


def params_in_name(name: str) -> float | None:
    """Parameters by the name of a base; None where it has no size, or one of several experts.

    >>> params_in_name("meta-llama/Llama-3.1-8B-Instruct"), params_in_name("qwen2.5-0.5b")
    (8000000000.0, 500000000.0)
    >>> params_in_name("mistralai/Mixtral-8x7B-v0.1"), params_in_name("gpt2")
    (None, None)
    """
    found = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)b(?![a-z])", name.rpartition("/")[2].lower())
    return None if found is None else float(found[1]) * 1e9
