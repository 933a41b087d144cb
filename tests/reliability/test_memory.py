"""Where memory runs out a step is done in more and smaller passes: the same rows, the same gradients, and told."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_cli.errors import ResourceError
from qlora_cli.model.base import read_config
from qlora_cli.model.device import is_out_of_memory
from qlora_cli.plan.machine.device import Device
from qlora_cli.plan.trace.request import PlanRequest
from qlora_cli.plan.trace_cache import Tracer
from qlora_cli.recipe.schema import Recipe
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.metrics import read_metrics
from qlora_cli.train.preflight import memory as forecast
from qlora_cli.train.session import TrainOptions, train_recipe
from qlora_cli.train.trainer import QloraTrainer
from tests.reliability.conftest import num_cases
from tests.reliability.harness.short_memory import Gradients, ShortMemory, largest_difference
from tests.reliability.harness.small_run import BASES, small_recipe, train_with

ACCUMULATION = 2
ROWS = 4
TOLERANCE = 1e-6
NUM_TORTURES = num_cases("MEMORY", 100)


@pytest.fixture
def recipe(tiny_base, chat_data):
    """Builds a recipe with batches of four rows and without dropout or clipping; sections and keys are overridden."""

    def build(**sections: Any) -> Recipe:
        training = {
            "max_steps": 3,
            "per_device_train_batch_size": ROWS,
            "gradient_accumulation_steps": ACCUMULATION,
            "max_grad_norm": 0,
        }
        given = {
            "lora": {"lora_dropout": 0} | sections.pop("lora", {}),
            "training": training | sections.pop("training", {}),
            "data": {"packing": False, "max_length": 128} | sections.pop("data", {}),
        }
        return small_recipe(tiny_base, chat_data, **given, **sections)

    return build


def gradients_of(recipe: Recipe, run: RunDirectory, memory: ShortMemory) -> Gradients:
    gradients = Gradients()

    def prepare(trainer: QloraTrainer) -> None:
        memory.install(trainer)
        trainer.add_callback(gradients)

    assert train_with(recipe, run, prepare).is_finished
    return gradients


Undisturbed = Callable[[Recipe], tuple[Gradients, list[float]]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Undisturbed:
    """Gradients and losses of a recipe's run with plenty of memory; each is trained once."""
    found: dict[str, tuple[Gradients, list[float]]] = {}

    def train(recipe: Recipe) -> tuple[Gradients, list[float]]:
        key = recipe.model_dump_json()
        if key not in found:
            run = RunDirectory(tmp_path_factory.mktemp("plain") / "run")
            found[key] = gradients_of(recipe, run, ShortMemory(1000)), losses_of(run)
        return found[key]

    return train


def losses_of(run: RunDirectory) -> list[float]:
    return [line["loss"] for line in read_metrics(run.metrics_path) if "loss" in line]


def check_same(
    undisturbed: Undisturbed, recipe: Recipe, folder: Path, memory: ShortMemory, tolerance: float = TOLERANCE
) -> None:
    """The step in which memory runs out has the gradients that it has where it does not, and the run its losses."""
    plain, losses = undisturbed(recipe)
    run = RunDirectory(folder / "split")
    split = gradients_of(recipe, run, memory)
    assert max(memory.rows_seen) > memory.max_rows >= memory.rows_seen[-1]
    assert largest_difference(plain.of_steps[memory.first_step], split.of_steps[memory.first_step]) < tolerance
    assert losses_of(run) == pytest.approx(losses, rel=10 * tolerance)


@pytest.mark.parametrize("max_rows", [1, 3])
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("base", ["fp32", "nf4", "int8"])
def test_a_step_in_pieces_has_the_gradients_of_the_whole_one(undisturbed, recipe, tmp_path, base, where, max_rows):
    memory = ShortMemory(max_rows, first_step=1, first_pass=1 if max_rows == 1 else 0, where=where)
    check_same(undisturbed, recipe(**BASES[base], data={"packing": base == "nf4"}), tmp_path, memory)


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("recomputes", [True, False], ids=["recomputing", "keeping activations"])
def test_so_has_a_step_of_a_single_pass(undisturbed, recipe, tmp_path, where, recomputes):
    training = {"gradient_accumulation_steps": 1, "gradient_checkpointing": recomputes}
    check_same(undisturbed, recipe(training=training), tmp_path, ShortMemory(2, first_step=1, where=where))


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("base", ["bf16", "bf16 adapter"])
def test_in_bfloat16_the_gradients_are_the_same_but_for_its_rounding(undisturbed, recipe, tmp_path, base, where):
    """Gradients of a pass are rounded to 8 bits before they are added up, so each piece is rounded apart."""
    memory = ShortMemory(2, first_step=1, where=where)
    check_same(undisturbed, recipe(**BASES[base]), tmp_path, memory, tolerance=4 * 2**-8)


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(NUM_TORTURES))
def test_wherever_memory_runs_out_the_gradients_stay_the_same(undisturbed, recipe, tmp_path, seed):
    chance = random.Random(seed)
    accumulation, rows = chance.choice([1, 2, 3]), chance.choice([2, 3, 4, 5, 8])
    training = {
        "gradient_accumulation_steps": accumulation,
        "per_device_train_batch_size": rows,
        "gradient_checkpointing": chance.choice([True, False]),
        "optim": chance.choice(["adamw_torch", "adamw_8bit"]),
    }
    lora = {"use_dora": chance.random() < 0.2, "modules_to_save": ["embed_tokens"] if chance.random() < 0.2 else []}
    base = BASES[chance.choice(["fp32", "nf4"] if lora["use_dora"] else ["fp32", "nf4", "int8"])]
    memory = ShortMemory(
        chance.randrange(1, rows),
        first_step=chance.choice([0, 1]),
        first_pass=chance.randrange(accumulation),
        where=chance.choice(["forward", "backward"]),
    )
    made = recipe(**base, lora=lora, training=training, data={"packing": chance.choice([True, False])})
    check_same(undisturbed, made, tmp_path, memory, tolerance=10 * TOLERANCE if lora["use_dora"] else TOLERANCE)


@pytest.mark.parametrize("stop", [2, 3])
def test_a_resumed_run_goes_on_with_the_pieces_that_it_had_to_the_bit(recipe, tmp_path, stop):
    """Memory runs out in the second step; after the resume there is plenty, as on another machine."""
    dropout = recipe(lora={"lora_dropout": 0.1}, training={"max_steps": 5})
    straight, resumed = RunDirectory(tmp_path / "straight"), RunDirectory(tmp_path / "resumed")
    train_with(dropout, straight, ShortMemory(2, first_step=1).install)
    train_with(dropout, resumed, ShortMemory(2, first_step=1).install, TrainOptions(stop_after=stop))
    plenty = ShortMemory(1000)
    train_with(dropout, resumed, plenty.install, TrainOptions(resume=True))
    assert set(plenty.rows_seen) == {2}
    for name in ("adapter_model.safetensors", "optimizer.safetensors", "random.safetensors", "processes.json"):
        files = [run.checkpoints_path / "step-000005" / name for run in (straight, resumed)]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert losses_of(straight) == losses_of(resumed)


def automatic(recipe, **settings) -> Recipe:
    """The rows of a step of `recipe`, as many of them a pass as fit."""
    training = {"per_device_train_batch_size": "auto", "gradient_accumulation_steps": ROWS * ACCUMULATION}
    return recipe(training=training | settings)


@pytest.mark.parametrize("max_rows", [1000, 3], ids=["all at once", "in pieces"])
def test_automatic_batches_have_the_gradients_and_losses_of_batches_of_any_size(
    undisturbed, recipe, tmp_path, max_rows
):
    memory = ShortMemory(max_rows)
    found = gradients_of(automatic(recipe), RunDirectory(tmp_path / "auto"), memory)
    assert memory.rows_seen[0] == ROWS * ACCUMULATION
    for rows, passes in ((ROWS, ACCUMULATION), (1, ROWS * ACCUMULATION)):
        training = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": passes}
        expected, losses = undisturbed(recipe(training=training))
        for step, gradients in enumerate(expected.of_steps):
            assert largest_difference(found.of_steps[step], gradients) < (TOLERANCE if step == 0 else 1e-3)
        assert losses_of(RunDirectory(tmp_path / "auto")) == pytest.approx(losses, rel=1e-4)


def test_what_the_plan_takes_for_too_much_is_not_tried(recipe, tmp_path):
    """The plan is believed from the first pass on; nothing has to fail first."""
    made = automatic(recipe)
    run = RunDirectory(tmp_path / "run")
    memory = ShortMemory(1000)

    def prepare(trainer: QloraTrainer) -> None:
        memory.install(trainer)

    with pytest.MonkeyPatch.context() as patch:
        needed = Tracer().device_bytes(with_rows_of(made, 3))
        patch.setattr(forecast, "available_bytes", lambda: needed)
        train_with(made, run, prepare, TrainOptions(check_memory=True))
    assert set(memory.rows_seen) == {2, 3}
    saved = json.loads((run.checkpoints_path / "step-000003" / "processes.json").read_text())
    assert saved["rows_at_once"] == [3]


def with_rows_of(recipe: Recipe, rows: int) -> PlanRequest:
    """The plan of its steps on this machine, with this many rows a pass."""
    passes = -(-recipe.training.rows_per_step // rows)
    settings = {"training.per_device_train_batch_size": rows, "training.gradient_accumulation_steps": passes}
    return PlanRequest(recipe, read_config(recipe.model), Device("cpu")).changed(settings)


def test_a_resumed_run_of_automatic_batches_goes_on_to_the_bit(recipe, tmp_path):
    made = automatic(recipe, max_steps=5)
    straight, resumed = RunDirectory(tmp_path / "straight"), RunDirectory(tmp_path / "resumed")
    train_with(made, straight, ShortMemory(5, first_step=1).install)
    train_with(made, resumed, ShortMemory(5, first_step=1).install, TrainOptions(stop_after=3))
    train_with(made, resumed, ShortMemory(1000).install, TrainOptions(resume=True))
    for name in ("adapter_model.safetensors", "optimizer.safetensors", "random.safetensors", "processes.json"):
        files = [run.checkpoints_path / "step-000005" / name for run in (straight, resumed)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_it_is_said_once_for_each_halving(recipe, tmp_path, capsys):
    train_with(recipe(), RunDirectory(tmp_path / "run"), ShortMemory(1, first_step=1).install)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("out of memory")]
    assert [line.partition(", with more")[0] for line in said] == [
        f"out of memory in step 2: micro-batch size is now {rows}" for rows in (2, 1)
    ]


def test_metrics_of_a_step_that_began_again_count_each_row_once(recipe, tmp_path):
    lines = []
    for name, memory in (("plain", ShortMemory(1000)), ("split", ShortMemory(2, first_pass=1))):
        run = RunDirectory(tmp_path / name)
        train_with(recipe(training={"max_steps": 1}), run, memory.install)
        lines.append(read_metrics(run.metrics_path)[0])
    assert lines[1]["mean_token_accuracy"] == pytest.approx(lines[0]["mean_token_accuracy"], abs=0.02)
    assert lines[1]["epoch"] == lines[0]["epoch"]


def test_a_row_that_does_not_fit_alone_ends_the_run_with_advice_and_a_checkpoint_to_go_on_from(recipe, tmp_path):
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(ResourceError, match="out of GPU memory: a single row does not fit") as caught:
        train_with(recipe(), run, ShortMemory(0, first_step=2).install)
    assert caught.value.exit_code == 5
    [problem] = caught.value.problems
    assert "--set quantization.quant_type=nf4" in problem.hint
    assert "--set data.max_length=64" in problem.hint
    assert "batch_size" not in problem.hint
    train_recipe(recipe(), run, TrainOptions(resume=True))
    assert run.is_finished


def test_an_evaluation_that_does_not_fit_goes_on_in_halves_with_the_same_loss(recipe, chat_data, tmp_path, capsys):
    losses = []
    for name, memory in (("plain", ShortMemory(1000)), ("split", ShortMemory(3, where="evaluation"))):
        run = RunDirectory(tmp_path / name)
        held_out = recipe(data={"eval": str(chat_data)}, eval={"eval_strategy": "steps", "eval_steps": 1})
        train_with(held_out, run, memory.install)
        losses.append([line["eval_loss"] for line in read_metrics(run.metrics_path) if "eval_loss" in line])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("out of memory")]
    assert said == [f"out of memory while evaluating: batch size is now {size}" for size in (4, 2)]


def test_what_the_cpu_says_when_it_has_no_memory_is_understood():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
