"""NaN and infinity, wherever they come from, stop the run in the same step, with the rows named and nothing lost."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from qlora_cli.errors import NumericError
from qlora_cli.recipe.schema import Recipe
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.manifest import read_manifest
from qlora_cli.train.session import TrainOptions, train_recipe
from qlora_cli.train.step.finite import MAX_OVERFLOWS
from tests.reliability.conftest import num_cases
from tests.reliability.harness.broken_numbers import (
    POISON,
    Fault,
    Outcome,
    break_gradients,
    finite_checkpoints,
    places_of_batches,
    poison_row,
    run_into,
)
from tests.reliability.harness.small_run import BASES, small_recipe, train_with

ACCUMULATION = 3
AT = {"first": 0, "middle": 1, "last": 2}
NUM_TORTURES = num_cases("NUMBERS", 200)


@pytest.fixture(scope="session")
def poisoned_base(tiny_base, tmp_path_factory) -> Path:
    """The tiny base with NaN in place of the embedding of one character."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_base), AutoTokenizer.from_pretrained(tiny_base)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(POISON)] = math.nan
    folder = tmp_path_factory.mktemp("poisoned") / "base"
    for saved in (model, tokenizer):
        saved.save_pretrained(folder)
    return folder


@pytest.fixture
def run_case(tiny_base, poisoned_base, chat_data, tmp_path):
    """Runs a recipe of `small_recipe` into a fault; the recipe's sections are given."""

    def run(fault: Fault, **sections: Any) -> tuple[Outcome, RunDirectory]:
        sections["training"] = {"gradient_accumulation_steps": ACCUMULATION} | sections.get("training", {})
        recipe = small_recipe(tiny_base, chat_data, **sections)
        directory = RunDirectory(tmp_path / "run")
        if fault.kind == "data":
            place = place_at(recipe, tmp_path, fault)
            poison_row(chat_data, tmp_path / "poisoned.jsonl", place)
            recipe = small_recipe(poisoned_base, tmp_path / "poisoned.jsonl", **sections)
        return run_into(fault, recipe, directory), directory

    return run


def place_at(recipe: Recipe, folder: Path, fault: Fault) -> str:
    """The last row of the pass that a fault names."""
    batches: list[list[str]] = []
    with pytest.raises(InterruptedError):
        train_with(recipe, RunDirectory(folder / "order"), lambda trainer: stop_with(batches, trainer))
    return batches[fault.step * recipe.training.gradient_accumulation_steps + fault.micro_batch][-1]


def stop_with(batches: list[list[str]], trainer: Any) -> None:
    batches += places_of_batches(trainer)
    raise InterruptedError


def check_stopped_before_the_update(outcome: Outcome, run: RunDirectory, step: int) -> None:
    """What holds for every fault at a step counted from 0."""
    assert outcome.error.exit_code == 4
    assert f"step {step + 1}" in outcome.text
    assert outcome.error.problems[0].hint
    assert finite_checkpoints(run) == list(range(1, step + 1))
    assert not run.is_finished
    assert read_manifest(run)["status"] != "finished"


def check_rows(outcome: Outcome, fault: Fault, accumulation: int) -> None:
    """The rows named are those of the pass with the fault; the single one that is to blame where the data is."""
    batch = outcome.batches[fault.step * accumulation + fault.micro_batch]
    named = batch[-1:] if fault.kind == "data" else batch[:8]
    assert ", ".join(named) in outcome.text
    others = {place for places in outcome.batches for place in places} - set(batch)
    assert not [place for place in others if f"{place}," in outcome.text or f"{place};" in outcome.text]


def check_weights_are_those_of_the_last_checkpoint(outcome: Outcome, run: RunDirectory, step: int) -> None:
    saved = load_file(run.checkpoints_path / f"step-{step:06d}" / "adapter_model.safetensors")
    for name, value in outcome.adapter.items():
        assert torch.equal(saved[name.replace(".default", "")], value)


PASSES = [
    (kind, position, list(BASES)[(row + 2 * column) % len(BASES)])
    for row, kind in enumerate(("loss", "gradient", "data"))
    for column, position in enumerate(AT)
]
"""Every kind of fault at every pass of a step, the kinds of base in turn."""


@pytest.mark.parametrize(("kind", "position", "base"), PASSES)
def test_a_pass_that_goes_wrong_stops_the_run_before_the_update_and_names_its_rows(run_case, kind, position, base):
    fault = Fault(kind, step=1, micro_batch=AT[position], value=math.nan if base == "nf4" else math.inf)
    outcome, run = run_case(fault, **BASES[base])
    check_stopped_before_the_update(outcome, run, fault.step)
    check_rows(outcome, fault, ACCUMULATION)
    check_weights_are_those_of_the_last_checkpoint(outcome, run, fault.step)


@pytest.mark.parametrize("base", ["bf16", "nf4"])
@pytest.mark.parametrize("kind", ["learning rate", "update", "weight"])
def test_weights_that_go_wrong_stop_the_run_in_the_same_step(run_case, kind, base):
    fault = Fault(kind, step=2, micro_batch=0, value=math.inf)
    outcome, run = run_case(fault, **BASES[base])
    check_stopped_before_the_update(outcome, run, fault.step)
    if kind == "learning rate":
        check_weights_are_those_of_the_last_checkpoint(outcome, run, fault.step)


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(NUM_TORTURES))
def test_any_fault_in_any_run_stops_it_in_the_same_step(run_case, seed):
    chance = random.Random(seed)
    accumulation = chance.choice([1, 2, 3])
    kind = chance.choice(["loss", "gradient", "data", "learning rate", "update", "weight"])
    packing = chance.choice([True, False])
    step = chance.choice([1, 2]) if packing else chance.choice([1, 2, 3])
    fault = Fault(kind, step, chance.randrange(accumulation), chance.choice([math.nan, math.inf, -math.inf]))
    sections = dict(BASES[chance.choice(list(BASES))])
    sections["data"] = {"packing": packing, "max_length": 64 if packing else 128}
    sections["training"] = {
        "gradient_accumulation_steps": accumulation,
        "optim": chance.choice(["adamw_torch", "adamw_8bit", "paged_adamw_32bit"]),
        "max_grad_norm": chance.choice([0, 0.3]),
        "gradient_checkpointing": chance.choice([True, False]),
    }
    outcome, run = run_case(fault, **sections)
    check_stopped_before_the_update(outcome, run, step)
    if kind in ("loss", "gradient", "data"):
        check_rows(outcome, fault, accumulation)


def test_the_same_run_without_a_fault_goes_through(tiny_base, poisoned_base, chat_data, tmp_path):
    """Without this every test above would pass on a trainer that always raises."""
    for name, base in (("plain", tiny_base), ("poisoned", poisoned_base)):
        run = RunDirectory(tmp_path / name)
        assert train_recipe(small_recipe(base, chat_data), run, TrainOptions()).is_finished
        assert finite_checkpoints(run) == [1, 2, 3, 4]


def test_a_tiny_epsilon_divides_nothing_by_nothing_and_is_found_in_the_first_update(tiny_base, chat_data, tmp_path):
    """While B is zero, A has no gradient, and 0 / (0 + 1e-50) in float32 is 0 / 0."""
    recipe = small_recipe(tiny_base, chat_data, training={"adam_epsilon": 1e-50})
    with pytest.raises(NumericError, match=r"the trained weight '.*lora_A.*' is not finite after the update of step 1"):
        train_recipe(recipe, RunDirectory(tmp_path / "run"), TrainOptions())
    assert finite_checkpoints(RunDirectory(tmp_path / "run")) == []


def test_rows_held_out_that_bring_nan_stop_the_run_and_are_named(poisoned_base, chat_data, tmp_path):
    poison_row(chat_data, tmp_path / "held-out.jsonl", f"{chat_data}:7")
    recipe = small_recipe(
        poisoned_base,
        chat_data,
        data={"eval": str(tmp_path / "held-out.jsonl")},
        eval={"eval_strategy": "steps", "eval_steps": 2},
    )
    with pytest.raises(
        NumericError, match=r"eval loss after step 2 is nan; it comes from .*held-out.jsonl:7; the weight"
    ):
        train_recipe(recipe, RunDirectory(tmp_path / "run"), TrainOptions())


def test_a_base_without_a_finite_weight_is_refused_before_the_first_step(poisoned_base, chat_data, tmp_path):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(poisoned_base), AutoTokenizer.from_pretrained(poisoned_base)
    model.model.layers[1].mlp.down_proj.weight.data[5, 7] = math.nan
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path / "base")
    recipe = small_recipe(tmp_path / "base", chat_data, data={"packing": True}, quantization={})
    with pytest.raises(NumericError, match=r"not finite before the first step: '.*' holds values") as caught:
        train_recipe(recipe, RunDirectory(tmp_path / "run"), TrainOptions())
    assert "download the base model again" in caught.value.problems[0].hint


def scale_losses(trainer: Any) -> None:
    """Train as with float16: a real loss scaler, which accelerate makes on GPUs only."""
    trainer.args.fp16 = True
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=4)
    trainer.accelerator.native_amp = True
    trainer.accelerator.state._mixed_precision = "fp16"


@pytest.fixture
def no_accelerator_left():
    """Accelerate keeps its setting of precision for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Scales(TrainerCallback):
    """Writes down the loss scale before the first step and after each."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.seen: list[float] = []

    def on_train_begin(self, *arguments: Any, **options: Any) -> None:
        self.seen.append(self._trainer.accelerator.scaler.get_scale())

    on_step_end = on_train_begin


def test_overflows_of_a_loss_scaler_are_skipped_and_the_run_goes_on(
    tiny_base, chat_data, tmp_path, no_accelerator_left
):
    scales: list[Scales] = []

    def prepare(trainer: Any) -> None:
        scale_losses(trainer)
        break_gradients(trainer, {2, 3, 7}, math.inf)
        scales.append(Scales(trainer))
        trainer.add_callback(scales[0])

    run = RunDirectory(tmp_path / "run")
    recipe = small_recipe(
        tiny_base, chat_data, training={"max_steps": 9, "gradient_accumulation_steps": 1, "save_steps": 3}
    )
    assert train_with(recipe, run, prepare).is_finished
    falls = [step for step, (before, after) in enumerate(pairwise(scales[0].seen), 1) if after < before]
    assert falls == [2, 3, 7]
    assert finite_checkpoints(run) == [3, 6, 9]


def test_overflows_without_an_end_are_an_error(tiny_base, chat_data, tmp_path, no_accelerator_left):
    def prepare(trainer: Any) -> None:
        scale_losses(trainer)
        break_gradients(trainer, set(range(5, 100)), math.nan)

    recipe = small_recipe(
        tiny_base, chat_data, training={"max_steps": 60, "gradient_accumulation_steps": 1, "save_steps": 30}
    )
    what = rf"gradient norm of step {5 + MAX_OVERFLOWS} is nan after {MAX_OVERFLOWS} skipped updates in a row"
    with pytest.raises(NumericError, match=what):
        train_with(recipe, RunDirectory(tmp_path / "run"), prepare)
