"""LoRA+: B learns at a multiple of A's learning rate, and a resumed run keeps both."""

from __future__ import annotations

import json

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from qlora_cli.errors import IdentityError
from qlora_cli.model.adapter import attach_adapter
from qlora_cli.recipe.schema import LoraSection
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.metrics import read_metrics
from qlora_cli.train.session import TrainOptions, train_recipe
from qlora_cli.train.step.parameter_groups import is_b_matrix, parameter_groups

RATIO = 8.0


@pytest.mark.parametrize(
    "lora", [{}, {"use_dora": True}, {"modules_to_save": ("lm_head",)}], ids=["plain", "dora", "head"]
)
def test_every_matrix_learns_at_the_rate_that_peft_gives_it(tiny_base, lora):
    """PEFT's groups are the outside measure; it counts DoRA's magnitudes to B, the paper knows none."""
    model = attach_adapter(AutoModelForCausalLM.from_pretrained(tiny_base), LoraSection(r=4, **lora))
    theirs = create_loraplus_optimizer(model, torch.optim.AdamW, lr=0.01, loraplus_lr_ratio=RATIO)
    decayed = {name for name, _ in model.named_parameters()}
    ours = parameter_groups(model, decayed, learning_rate=0.01, weight_decay=0.1, ratio=RATIO)
    rates = [
        {id(p): group["lr"] for group in groups for p in group["params"]} for groups in (ours, theirs.param_groups)
    ]
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(rates[0]) == {id(parameter) for parameter in trained.values()}
    for name, parameter in trained.items():
        if "magnitude" not in name:
            assert rates[0][id(parameter)] == rates[1][id(parameter)], name
    assert sum(len(group["params"]) for group in ours) == len(trained)
    assert ours[0]["lr"] == 0.01


@pytest.fixture
def recipe(small_recipe):
    def build(ratio: float | None, **training):
        training = {"warmup_ratio": 0.0, "weight_decay": 0.0, "optim": "adamw_torch", **training}
        return small_recipe(lora={"r": 32, "lora_dropout": 0.1, "loraplus_lr_ratio": ratio}, training=training)

    return build


def test_the_first_update_of_b_is_as_many_times_as_large(recipe, tmp_path):
    """While B is zero A has no gradient, so that one step moves B alone."""
    found = []
    for ratio in (None, RATIO):
        run = RunDirectory(tmp_path / str(ratio))
        train_recipe(recipe(ratio, max_steps=1), run, TrainOptions())
        found.append(load_file(run.adapter_path / "adapter_model.safetensors"))
    for name, plain in found[0].items():
        factor = RATIO if is_b_matrix(name) else 1
        torch.testing.assert_close(found[1][name], plain * factor)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_8bit", "paged_adamw_32bit"])
def test_a_run_stopped_and_resumed_is_the_straight_one_to_the_bit(recipe, tmp_path, optim):
    asked = recipe(RATIO, max_steps=4, optim=optim)
    straight, resumed = RunDirectory(tmp_path / "straight"), RunDirectory(tmp_path / "resumed")
    train_recipe(asked, straight, TrainOptions())
    train_recipe(asked, resumed, TrainOptions(stop_after=2))
    train_recipe(asked, resumed, TrainOptions(resume=True))
    for name in ("adapter_model.safetensors", "optimizer.safetensors", "optimizer.json", "scheduler.json"):
        paths = [run.checkpoints_path / "step-000004" / name for run in (straight, resumed)]
        assert paths[0].read_bytes() == paths[1].read_bytes(), name
    rates = [[line.get("learning_rate") for line in read_metrics(run.metrics_path)] for run in (straight, resumed)]
    assert rates[0] == rates[1]


def test_the_schedule_turns_both_rates_and_the_log_shows_that_of_a(recipe, tmp_path):
    run = RunDirectory(tmp_path / "run")
    train_recipe(recipe(RATIO, max_steps=4), run, TrainOptions(stop_after=2))
    groups = json.loads((run.checkpoints_path / "step-000002" / "optimizer.json").read_text())["param_groups"]
    assert [group["initial_lr"] for group in groups] == [0.01, 0.01 * RATIO]
    assert groups[1]["lr"] == pytest.approx(RATIO * groups[0]["lr"])
    assert 0 < groups[0]["lr"] < 0.01
    logged = [line["learning_rate"] for line in read_metrics(run.metrics_path) if "learning_rate" in line]
    assert logged[0] == 0.01
    with pytest.raises(IdentityError, match=r"lora\.loraplus_lr_ratio: 8\.0 -> 4\.0"):
        train_recipe(recipe(4.0, max_steps=4), run, TrainOptions(resume=True))
