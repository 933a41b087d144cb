"""Numbers that are not finite: found before they spread, and reported with the rows that caused them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qlora_cli.data.collator import Collator
from qlora_cli.data.packed_rows import PackedRows
from qlora_cli.data.token_row import TokenRow
from qlora_cli.errors import NumericError
from qlora_cli.model.eval_loss import labelled_losses
from qlora_cli.train.step.row_ids import describe_places, documents_of

MAX_OVERFLOWS = 20
"""Steps in a row that float16's loss scaler may skip. It starts at 2^16 and halves the scale at each
(`torch.amp.GradScaler`), so that after 16 of them gradients are no longer scaled up; an overflow that remains after
that will not go away."""

RESTART_HINT = "--resume would come here again: start over with a lower training.learning_rate and another --run-dir"


def largest_value(tensors: Iterable[torch.Tensor | None]) -> torch.Tensor:
    """The largest magnitude in all tensors, a scalar on their device; NaN or infinite where any value is.

    Nothing is waited for: the device computes it while the caller continues.

    >>> largest_value([torch.tensor([-3.0, 1.0]), None, torch.tensor([2.0])]).item()
    3.0
    """
    floating = [tensor for tensor in tensors if tensor is not None and tensor.is_floating_point() and tensor.numel()]
    return torch.nn.utils.get_total_norm(floating, norm_type=torch.inf)


def is_finite(value: torch.Tensor | float) -> bool:
    """Whether a scalar is neither NaN nor infinite; waits for the device."""
    return bool(torch.isfinite(torch.as_tensor(value)))


def first_nonfinite(tensors: Iterable[tuple[str, Any]]) -> str:
    """Name of the first tensor that holds NaN or infinity; empty where all are finite.

    Args:
        tensors: names and values; a value that is not a tensor of floating-point numbers counts as finite.
    """
    named = [(name, value) for name, value in tensors if torch.is_tensor(value)]
    if is_finite(largest_value(value for _, value in named)):
        return ""
    return next(name for name, value in named if not is_finite(largest_value([value])))


def flatten_state_dict(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a nested state dict, by dotted names.

    >>> list(flatten_state_dict({"state": {0: {"step": 3}}}))
    [('state.0.step', 3)]
    """
    if isinstance(value, dict):
        for key, below in value.items():
            yield from flatten_state_dict(below, f"{name}.{key}".lstrip("."))
    else:
        yield name, value


def weight_values(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight with its name; of a quantized one also the constants of its blocks, where NaN would be stored."""
    for name, parameter in model.named_parameters():
        yield name, parameter
        four_bit = getattr(parameter, "quant_state", None)
        for state in (four_bit, getattr(four_bit, "state2", None)):
            yield from ((name, value) for value in vars(state or object).values() if torch.is_tensor(value))
    for name, module in model.named_modules():
        int8 = getattr(module, "state", None)
        for constants in (getattr(int8, "SCB", None), getattr(getattr(module, "weight", None), "SCB", None)):
            if constants is not None:
                yield f"{name}.weight", constants


def check_finite_state(model: nn.Module, optimizer: torch.optim.Optimizer | None, step: int, place: str) -> None:
    """Make sure that adapter and optimizer hold nothing that is not finite.

    Raises:
        NumericError: naming the first tensor that does.
    """
    adapter = ((name, value) for name, value in model.named_parameters() if value.requires_grad)
    state = flatten_state_dict(optimizer.state_dict()["state"], "optimizer") if optimizer is not None else ()
    if broken := first_nonfinite([*adapter, *state]):
        raise NumericError(
            f"'{broken}' holds values that are not finite after step {step}; nothing is written",
            place=place,
            hint=RESTART_HINT,
        )


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass of a step."""

    row_ids: torch.Tensor
    largest_gradient: torch.Tensor
    """Of all gradients of the step so far, this pass included."""


@dataclass
class StepGradients:
    """Passes that have gone into the gradients of the current step."""

    step: int = -1
    micro_batches: list[MicroBatch] = field(default_factory=list)

    def add(self, step: int, micro_batch: MicroBatch) -> None:
        """Write down a pass of the step after `step`."""
        if step != self.step:
            self.step, self.micro_batches = step, []
        self.micro_batches.append(micro_batch)

    def largest_gradient_microbatch(self) -> MicroBatch:
        """The first pass after which a gradient was not finite, or the last one."""
        for micro_batch in self.micro_batches:
            if not is_finite(micro_batch.largest_gradient):
                return micro_batch
        return self.micro_batches[-1]


@dataclass(frozen=True)
class NonFiniteDiagnosis:
    """Finds the cause of a number that is not finite, by computing the step's rows again, one at a time."""

    model: PeftModel
    collator: Collator
    rows: PackedRows
    place: str
    """The run directory."""

    def error(self, what: str, row_ids: Iterable[int]) -> NumericError:
        """The error to raise.

        Args:
            what: a sentence without its end, such as "the loss of step 3 is nan; stopped before the update".
            row_ids: packed rows that went into it.
        """
        documents = list(documents_of(self.rows, row_ids))
        guilty = [document for document in documents if not self._has_finite_loss(document)]
        broken = first_nonfinite(weight_values(self.model))
        source = f"it comes from {describe_places(guilty)}" if guilty else f"its rows are {describe_places(documents)}"
        if broken:
            is_trained = any(name == broken and value.requires_grad for name, value in self.model.named_parameters())
            remedy = "download the base model again or choose another model.dtype; start over with another --run-dir"
            return NumericError(
                f"{what}; {source}; the weight '{broken}' is not finite",
                place=self.place,
                hint="continue from the last checkpoint with --resume" if is_trained else remedy,
            )
        remedy = "inspect these rows; fix or remove them, and start over with another --run-dir"
        return NumericError(f"{what}; {source}", place=self.place, hint=remedy if guilty else RESTART_HINT)

    def _has_finite_loss(self, document: TokenRow) -> bool:
        row = {"input_ids": document.input_ids, "labels": document.labels, "seq_lengths": [len(document.input_ids)]}
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad():
            losses = labelled_losses(self.model, self.collator([row]))
        self.model.train(was_training)
        return is_finite(largest_value([losses]))


class FiniteWeightsCallback(TrainerCallback):
    """Makes sure that every update starts from finite weights with a finite learning rate and leaves finite weights.

    Args:
        place: the run directory.
    """

    def __init__(self, place: str) -> None:
        self._place = place

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._check_weights(kwargs["model"], f"is not finite before step {state.global_step + 1}")

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for group in kwargs["optimizer"].param_groups:
            if not is_finite(group["lr"]):
                raise NumericError(
                    f"the learning rate of step {state.global_step + 1} is {float(group['lr'])}; "
                    "stopped before the update",
                    place=self._place,
                    hint=RESTART_HINT,
                )

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._check_weights(
            kwargs["model"], f"is not finite after the update of step {state.global_step + 1}, which is not saved"
        )

    def _check_weights(self, model: nn.Module, what: str) -> None:
        trained = ((name, value) for name, value in model.named_parameters() if value.requires_grad)
        if broken := first_nonfinite(trained):
            raise NumericError(f"the trained weight '{broken}' {what}", place=self._place, hint=RESTART_HINT)
