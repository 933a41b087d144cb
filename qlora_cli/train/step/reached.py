"""Before the first update: every trained tensor must have got a gradient, or it would be saved as it was made."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qlora_cli.errors import RecipeError

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
ADAPTER_PARTS = re.compile(r"^base_model\.model\.|\.(lora_\w+|modules_to_save)\..*$")
NUM_SHOWN = 2


class ReachedCallback(TrainerCallback):
    """Looks at the gradients of the first step that this process takes, all of its passes added up.

    Args:
        place: the run directory.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._is_done = False

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop where a tensor has none.

        Raises:
            RecipeError: with those tensors; nothing was updated or saved.
        """
        if not self._is_done:
            self._is_done = True
            refuse_untouched(kwargs["model"], self._place)


def refuse_untouched(model: PeftModel, place: str) -> None:
    """Refuse trained tensors that the last backward passes have not gone through.

    A gradient that is all zero counts as one: B starts at zero, and so does then the gradient of A, and so are the rows
    of experts that no token was sent to where the experts share a tensor. An expert that is a module of its own and was
    given no token has no gradient; it is let through if another expert of its layer has one.

    Args:
        model: after a step's backward passes.
        place: the run directory.

    Raises:
        RecipeError: with the tensors, and targets that do get a gradient.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    untouched = without_gradient(trained)
    if not untouched:
        return
    shown = ", ".join(untouched[:NUM_SHOWN]) + (", …" if len(untouched) > NUM_SHOWN else "")
    raise RecipeError(
        f"{len(untouched)} of {len(trained)} trained tensors got no gradient in the first step, and would stay as they "
        f"are: {shown}",
        place=place,
        hint=_hint(untouched, [name for name, _ in trained]),
    )


def without_gradient(trained: Iterable[tuple[str, nn.Parameter]]) -> list[str]:
    """Names of the parameters without a gradient, but for experts that were given no token.

    >>> weights = [nn.Parameter(nn.init.zeros_(nn.Linear(1, 1).weight)) for _ in range(3)]
    >>> weights[0].sum().backward()
    >>> names = ["layers.0.experts.0.lora_A", "layers.0.experts.1.lora_A", "layers.1.lora_A"]
    >>> without_gradient(zip(names, weights))
    ['layers.1.lora_A']
    """
    trained = list(trained)
    alive = {_any_expert(name) for name, parameter in trained if parameter.grad is not None}
    return [name for name, parameter in trained if parameter.grad is None and _any_expert(name) not in alive]


def _any_expert(name: str) -> str:
    """The name without the last of its numbers, if it has at least two: that of the layer, that of the expert."""
    numbers = list(NUMBER.finditer(name))
    return f"{name[: numbers[-1].start()]}*{name[numbers[-1].end() :]}" if len(numbers) > 1 else name


def _hint(untouched: list[str], trained: list[str]) -> str:
    dead = {ADAPTER_PARTS.sub("", name) for name in untouched}
    if any(".modules_to_save." in name for name in untouched):
        saved = sorted(ADAPTER_PARTS.sub("", name) for name in untouched if ".modules_to_save." in name)
        return f"take {saved[0]} out of lora.modules_to_save, and start over with another --run-dir"
    modules = {ADAPTER_PARTS.sub("", name) for name in trained if ".modules_to_save." not in name} - dead
    last_parts = {name.split(".")[-1] for name in modules} - {name.split(".")[-1] for name in dead}
    if last_parts:
        return f"--set 'lora.target_modules=[{','.join(sorted(last_parts))}]' with another --run-dir"
    if modules:
        named = f"--set 'lora.target_modules=[{min(modules)}]'"
        return f"name the layers to adapt in full, as in {named}, with another --run-dir"
    return "choose another base model: its forward pass does not go through the layers that it has"
