"""Numbers that are not finite, put into a real run at a chosen pass of a chosen step."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from qlora_cli.errors import NumericError
from qlora_cli.recipe.schema import Recipe
from qlora_cli.run.checkpoints import list_checkpoints
from qlora_cli.run.directory import RunDirectory
from qlora_cli.train.trainer import QloraTrainer
from tests.reliability.harness.small_run import train_with

POISON = "^"
"""A character that no other row has; in the poisoned base its embedding is NaN."""


@dataclass(frozen=True)
class Fault:
    """One number, and where it is put."""

    kind: str
    """A key of `FAULTS`, or "data": a row with the character whose embedding is NaN."""

    step: int
    """From 0."""

    micro_batch: int
    value: float = float("nan")


@dataclass
class Outcome:
    """What came of a run with a fault."""

    error: NumericError
    batches: list[list[str]]
    """Places of each pass of the first epoch."""

    adapter: dict[str, torch.Tensor]
    """The trained weights in memory when the run had stopped."""

    @property
    def text(self) -> str:
        [problem] = self.error.problems
        return problem.text


def run_into(fault: Fault, recipe: Recipe, run: RunDirectory) -> Outcome:
    """Train until the fault stops the run.

    Raises:
        AssertionError: if it does not.
    """
    seen: list[QloraTrainer] = []

    def prepare(trainer: QloraTrainer) -> None:
        seen.append(trainer)
        if fault.kind != "data":
            FAULTS[fault.kind](trainer, fault)

    try:
        train_with(recipe, run, prepare)
    except NumericError as error:
        [trainer] = seen
        adapter = {
            name: value.detach().clone() for name, value in trainer.model.named_parameters() if value.requires_grad
        }
        return Outcome(error, places_of_batches(trainer), adapter)
    raise AssertionError(f"the run went on through {fault}")


def places_of_batches(trainer: QloraTrainer) -> list[list[str]]:
    """Where the rows of each pass of the first epoch come from, asked of the loader and the rows on disk."""
    loader = trainer.get_train_dataloader()
    loader.set_epoch(0)
    rows = trainer._parts.data.train
    return [[str(place) for number in batch["row_ids"].tolist() for place in rows.places(number)] for batch in loader]


def poison_row(clean: Path, poisoned: Path, place: str) -> None:
    """Copy a data file with one character of the row at `place` replaced, so that its length stays the same."""
    lines = clean.read_text("utf-8").splitlines()
    number = int(place.rpartition(":")[2]) - 1
    row = json.loads(lines[number])
    lines[number] = json.dumps({**row, "instruction": POISON + row["instruction"][1:]})
    poisoned.write_text("\n".join(lines) + "\n", "utf-8")


def finite_checkpoints(run: RunDirectory) -> list[int]:
    """Steps of the visible checkpoints; every one is whole and every tensor in it is finite."""
    steps = []
    for checkpoint in list_checkpoints(run.checkpoints_path):
        assert checkpoint.problem() == ""
        for path in checkpoint.path.glob("*.safetensors"):
            tensors = load_file(path).values()
            assert all(torch.isfinite(tensor).all() for tensor in tensors if tensor.is_floating_point()), path
        steps.append(checkpoint.step)
    return steps


def break_gradients(trainer: QloraTrainer, passes: Collection[int], value: float) -> None:
    """Multiply the gradients of some passes, counted from 1."""

    def act(hidden: torch.Tensor) -> None:
        hidden.register_hook(lambda gradient: gradient * value)

    _at_passes(trainer, passes, act)


def _at_passes(
    trainer: QloraTrainer, passes: Collection[int], act: Callable[[torch.Tensor], torch.Tensor | None]
) -> None:
    """Call `act` on the last hidden states of some passes, counted from 1; what it returns takes their place."""
    num_passes = 0

    def hook(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        nonlocal num_passes
        if not trainer.model.training:
            return None
        num_passes += 1
        return act(output) if num_passes in passes else None

    trainer.model.get_base_model().model.norm.register_forward_hook(hook)


def _number_of_pass(trainer: QloraTrainer, fault: Fault) -> int:
    return fault.step * trainer.args.gradient_accumulation_steps + fault.micro_batch + 1


def _break_loss(trainer: QloraTrainer, fault: Fault) -> None:
    _at_passes(trainer, {_number_of_pass(trainer, fault)}, lambda hidden: hidden * fault.value)


def _break_gradient(trainer: QloraTrainer, fault: Fault) -> None:
    break_gradients(trainer, {_number_of_pass(trainer, fault)}, fault.value)


class _AtStep(TrainerCallback):
    """Calls something before the update of a step, or right after it."""

    def __init__(self, fault: Fault, event: str, act: Callable[[Any, Any], None]) -> None:
        self._fault, self._event, self._act = fault, event, act

    def _handle(self, event: str, state: Any, options: Any) -> None:
        if event == self._event and state.global_step == self._fault.step:
            self._act(options["model"], options["optimizer"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self._handle("step begin", state, options)

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self._handle("step end", state, options)


def _break_learning_rate(trainer: QloraTrainer, fault: Fault) -> None:
    def act(model: Any, optimizer: Any) -> None:
        optimizer.param_groups[0]["lr"] = fault.value

    trainer.add_callback(_AtStep(fault, "step begin", act))


def _break_update(trainer: QloraTrainer, fault: Fault) -> None:
    """The optimizer's own arithmetic goes wrong, as a tiny epsilon or a faulty kernel makes it."""
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    updates = 0

    def hook(*arguments: Any) -> None:
        nonlocal updates
        updates += 1
        if updates == fault.step + 1:
            trained[-1].data.flatten()[fault.micro_batch] = fault.value

    create = trainer.create_optimizer

    def create_and_hook(*arguments: Any) -> Any:
        optimizer = create(*arguments)
        optimizer.register_step_post_hook(hook)
        return optimizer

    trainer.create_optimizer = create_and_hook


def _break_weight(trainer: QloraTrainer, fault: Fault) -> None:
    """A trained weight is lost between two steps, as by a bit that flips in memory."""

    def act(model: Any, optimizer: Any) -> None:
        optimizer.param_groups[0]["params"][fault.micro_batch].data.flatten()[-1] = fault.value

    trainer.add_callback(_AtStep(fault, "step begin", act))


FAULTS: dict[str, Callable[[QloraTrainer, Fault], None]] = {
    "loss": _break_loss,
    "gradient": _break_gradient,
    "learning rate": _break_learning_rate,
    "update": _break_update,
    "weight": _break_weight,
}
