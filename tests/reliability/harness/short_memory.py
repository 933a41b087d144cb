"""A machine whose memory holds a few rows a pass: passes over more of them fail as they do on a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import TrainerCallback

from qlora_cli.train.trainer import QloraTrainer


@dataclass
class ShortMemory:
    """Which passes do not fit."""

    max_rows: int
    """Rows of the largest pass that fits."""

    first_step: int = 0
    first_pass: int = 0
    """From this pass of this step on, both counted from 0."""

    where: Literal["forward", "backward", "evaluation"] = "forward"
    """backward: when the last layer has added its gradients and the first one has not."""

    rows_seen: list[int] = field(default_factory=list)
    """Rows of every pass, those that failed included."""

    def install(self, trainer: QloraTrainer) -> None:
        """Put it into a trainer that has not begun."""
        base = trainer.model.get_base_model().model
        base.embed_tokens.register_forward_pre_hook(lambda module, inputs: self._look_at(trainer, len(inputs[0])))
        base.layers[0].register_forward_hook(lambda module, inputs, output: self._fail_backward(trainer, output))

    def _look_at(self, trainer: QloraTrainer, num_rows: int) -> None:
        if trainer.model.training:
            self.rows_seen.append(num_rows)
        looked_at = "forward" if trainer.model.training else "evaluation"
        if self.where == looked_at and self._is_too_much(trainer, num_rows):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    def _is_too_much(self, trainer: QloraTrainer, num_rows: int) -> bool:
        done = (trainer.state.global_step, len(trainer._step_gradients.micro_batches))
        if trainer._step_gradients.step != trainer.state.global_step:
            done = (done[0], 0)
        return num_rows > self.max_rows and done >= (self.first_step, self.first_pass)

    def _fail_backward(self, trainer: QloraTrainer, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if not (self.where == "backward" and trainer.model.training and hidden.requires_grad):
            return
        if self._is_too_much(trainer, len(hidden)):
            hidden.register_hook(self._raise)

    def _raise(self, gradient: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


class Gradients(TrainerCallback):
    """Keeps the gradients of each step as they are before the update."""

    def __init__(self) -> None:
        self.of_steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, *arguments: Any, **options: Any) -> None:
        named = options["model"].named_parameters()
        self.of_steps.append({name: value.grad.clone() for name, value in named if value.grad is not None})


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest difference of two sets of gradients, as a share of the largest gradient."""
    assert one.keys() == other.keys()
    largest = max(value.abs().max().item() for value in one.values())
    return max((one[name] - other[name]).abs().max().item() for name in one) / largest
