"""Training from a recipe: it learns, it stops, and a resumed run is the uninterrupted one to the bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from qlora_cli.errors import ArgumentError, IdentityError, NumericError, RecipeError, StoppedBySignal
from qlora_cli.run.checkpoints import list_checkpoints
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.manifest import read_manifest
from qlora_cli.run.metrics import read_metrics
from qlora_cli.train.session import TrainOptions, train_recipe
from tests.turns import in_turn

BASES = {
    "fp32": {},
    "bf16": {"model": {"dtype": "bfloat16"}},
    "bf16 adapter": {"model": {"dtype": "bfloat16"}, "lora": {"autocast_adapter_dtype": False}},
    "nf4": {"quantization": {}},
    "nf4 in bf16": {"quantization": {}, "model": {"dtype": "bfloat16"}},
    "int8": {"quantization": {"quant_type": "int8"}},
}


def bytes_of(run: RunDirectory, step: int) -> dict[str, bytes]:
    folder = run.checkpoints_path / f"step-{step:06d}"
    names = (
        "adapter_model.safetensors",
        "optimizer.safetensors",
        "optimizer.json",
        "scheduler.json",
        "random.safetensors",
    )
    return {name: (folder / name).read_bytes() for name in names}


def stop_and_resume(recipe, path, steps: int) -> RunDirectory:
    run = RunDirectory(path)
    result = train_recipe(recipe, run, TrainOptions(stop_after=steps))
    assert result.num_steps == steps
    assert not run.is_finished
    train_recipe(recipe, run, TrainOptions(resume=True))
    return run


@pytest.fixture(scope="module")
def finished(narrow_recipe, tmp_path_factory) -> RunDirectory:
    """An undisturbed run of the small recipe, to look at."""
    run = RunDirectory(tmp_path_factory.mktemp("finished") / "run")
    train_recipe(narrow_recipe(), run, TrainOptions())
    return run


@pytest.mark.every(2)
@pytest.mark.parametrize(("base", "packing"), in_turn(BASES, [True, False]))
def test_four_steps_and_four_after_a_resume_are_eight_straight_to_the_bit(narrow_recipe, tmp_path, base, packing):
    recipe = narrow_recipe(**BASES[base], data={"packing": packing})
    straight = RunDirectory(tmp_path / "straight")
    train_recipe(recipe, straight, TrainOptions())
    resumed = stop_and_resume(recipe, tmp_path / "resumed", steps=4)
    assert bytes_of(straight, 8) == bytes_of(resumed, 8)
    finals = [run.adapter_path / "adapter_model.safetensors" for run in (straight, resumed)]
    assert finals[0].read_bytes() == finals[1].read_bytes()
    losses = [[line.get("loss") for line in read_metrics(run.metrics_path)] for run in (straight, resumed)]
    assert losses[0] == losses[1]


def test_noise_on_the_embeddings_is_the_same_after_a_resume_and_not_in_the_eval_loss(narrow_recipe, tmp_path):
    recipe = narrow_recipe(training={"neftune_noise_alpha": 50.0, "max_steps": 6}, lora={"lora_dropout": 0.0})
    straight = RunDirectory(tmp_path / "straight")
    train_recipe(recipe, straight, TrainOptions())
    resumed = stop_and_resume(recipe, tmp_path / "resumed", steps=3)
    assert bytes_of(straight, 6) == bytes_of(resumed, 6)
    losses = []
    for alpha in (None, 50.0):
        run = RunDirectory(tmp_path / str(alpha))
        training = {"neftune_noise_alpha": alpha, "max_steps": 1, "learning_rate": 1e-30}
        train_recipe(narrow_recipe(training=training, lora={"lora_dropout": 0.0}), run, TrainOptions())
        lines = read_metrics(run.metrics_path)
        losses.append([line[key] for line in lines for key in ("loss", "eval_loss") if key in line])
    (loss, eval_loss), (noisy_loss, noisy_eval_loss) = losses
    assert noisy_loss != pytest.approx(loss, rel=1e-4)
    assert noisy_eval_loss == pytest.approx(eval_loss, rel=1e-6)


@pytest.mark.every(3)
@pytest.mark.parametrize(("optim", "steps"), in_turn(["adamw_torch", "adamw_8bit", "paged_adamw_32bit"], [3, 5]))
def test_every_optimizer_resumes_to_the_bit(narrow_recipe, tmp_path, optim, steps):
    """In the first epoch and in a later one."""
    recipe = narrow_recipe(quantization={}, training={"optim": optim}, lora={"r": 64})  # 4,096 elements: state in 8 bit
    straight = RunDirectory(tmp_path / "straight")
    train_recipe(recipe, straight, TrainOptions())
    resumed = stop_and_resume(recipe, tmp_path / "resumed", steps)
    assert bytes_of(straight, 8) == bytes_of(resumed, 8)


@pytest.mark.parametrize(
    "lora",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "loftq"},
        {"init_lora_weights": "calibrated"},
        {"init_lora_weights": "calibrated", "use_qalora": True},
        {"use_dora": True},
    ],
    ids=str,
)
def test_every_kind_of_adapter_resumes_to_the_bit(narrow_recipe, tmp_path, lora):
    recipe = narrow_recipe(quantization={"method": "int"} if "use_qalora" in lora else {}, lora=lora)
    straight = RunDirectory(tmp_path / "straight")
    train_recipe(recipe, straight, TrainOptions())
    resumed = stop_and_resume(recipe, tmp_path / "resumed", 4)
    assert bytes_of(straight, 8) == bytes_of(resumed, 8)


def test_the_loss_falls_and_the_adapter_loads_with_plain_peft(small_recipe, tmp_path, tiny_base):
    run = RunDirectory(tmp_path / "run")
    result = train_recipe(small_recipe(training={"max_steps": 12}), run, TrainOptions())
    lines = read_metrics(run.metrics_path)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] - 0.5
    assert result.eval_loss == [line["eval_loss"] for line in lines if "eval_loss" in line][-1]
    assert {"tokens_per_second", "peak_memory_bytes", "learning_rate", "grad_norm"} <= lines[-2].keys()
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), run.adapter_path)
    assert read_manifest(run)["status"] == "finished"


def test_no_file_of_a_run_is_a_pickle(finished):
    suffixes = {path.suffix for path in finished.path.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".jsonl", ".yaml", ".txt", ".jinja", ".html", ""}


def test_checkpoints_come_every_save_steps_and_only_the_newest_stay(narrow_recipe, tmp_path):
    run = RunDirectory(tmp_path / "run")
    training = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}
    train_recipe(narrow_recipe(training=training), run, TrainOptions())
    assert [checkpoint.step for checkpoint in list_checkpoints(run.checkpoints_path)] == [6, 8]


def test_a_signal_ends_the_run_with_a_checkpoint_and_its_exit_code(narrow_recipe, tmp_path):
    run = RunDirectory(tmp_path / "run")
    handler_before = signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        while not run.metrics_path.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    recipe = narrow_recipe(training={"max_steps": 500})
    with pytest.raises(StoppedBySignal, match="checkpoint is saved") as caught:
        train_recipe(recipe, run, TrainOptions())
    thread.join()
    assert caught.value.exit_code == 130
    [newest] = list_checkpoints(run.checkpoints_path)[-1:]
    assert newest.problem() == ""
    assert 0 < newest.step < 500
    assert read_manifest(run)["status"] == "stopped"
    assert signal.getsignal(signal.SIGINT) is handler_before


def test_a_damaged_newest_checkpoint_falls_back_to_the_older_one(narrow_recipe, tmp_path):
    recipe = narrow_recipe(training={"save_strategy": "steps", "save_steps": 2})
    straight = RunDirectory(tmp_path / "straight")
    train_recipe(recipe, straight, TrainOptions())
    run = RunDirectory(tmp_path / "run")
    train_recipe(recipe, run, TrainOptions(stop_after=6))
    (run.checkpoints_path / "step-000006" / "optimizer.safetensors").write_bytes(b"")
    train_recipe(recipe, run, TrainOptions(resume=True))
    assert bytes_of(straight, 8) == bytes_of(run, 8)


def test_a_run_is_not_overwritten_by_accident(narrow_recipe, finished):
    with pytest.raises(ArgumentError, match="already holds a finished run"):
        train_recipe(narrow_recipe(), finished, TrainOptions())


def test_a_changed_recipe_is_not_resumed_and_the_keys_are_named(narrow_recipe, tmp_path):
    run = RunDirectory(tmp_path / "run")
    train_recipe(narrow_recipe(), run, TrainOptions(stop_after=2))
    with pytest.raises(IdentityError, match=r"lora\.r: 4 -> 8") as caught:
        train_recipe(narrow_recipe(lora={"r": 8}), run, TrainOptions(resume=True))
    assert caught.value.exit_code == 3
    train_recipe(narrow_recipe(training={"logging_steps": 2}), run, TrainOptions(resume=True))


def test_changed_data_is_not_resumed(narrow_recipe, tmp_path):
    data = tmp_path / "data.jsonl"
    row = {"instruction": "say", "output": "yes"}
    data.write_text("".join(json.dumps({**row, "output": f"yes {n}"}) + "\n" for n in range(20)))
    recipe = narrow_recipe(data={"train": str(data)})
    run = RunDirectory(tmp_path / "run")
    train_recipe(recipe, run, TrainOptions(stop_after=2))
    data.write_text(data.read_text().replace("yes 3", "no 3"))
    with pytest.raises(IdentityError, match="the data has changed"):
        train_recipe(recipe, run, TrainOptions(resume=True))


def test_a_loss_that_is_not_finite_stops_before_the_update(narrow_recipe, tiny_base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("}")] = float("nan")
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path / "base")
    data = tmp_path / "data.jsonl"
    rows = ({"instruction": "say", "output": "}" if number == 30 else str(number)} for number in range(40))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = narrow_recipe(
        model={"base_model": str(tmp_path / "base")},
        data={"train": str(data), "eval_fraction": None, "packing": False},
        training={"max_steps": 20, "save_strategy": "steps", "save_steps": 1},
    )
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(NumericError, match=r"loss of step \d+ is nan; stopped before the update") as caught:
        train_recipe(recipe, run, TrainOptions())
    assert caught.value.exit_code == 4
    last = list_checkpoints(run.checkpoints_path)[-1]
    assert f"step {last.step + 1} " in caught.value.problems[0].text
    tensors = load_file(last.path / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


@pytest.mark.parametrize("max_steps", [4, 6], ids=["in mid-epoch", "later"])
def test_resuming_a_finished_run_does_no_step_too_many_and_gives_back_a_lost_adapter(
    narrow_recipe, tmp_path, max_steps
):
    run = RunDirectory(tmp_path / "run")
    recipe = narrow_recipe(training={"max_steps": max_steps})
    train_recipe(recipe, run, TrainOptions())
    weights = run.adapter_path / "adapter_model.safetensors"
    trained = weights.read_bytes()
    weights.unlink()
    result = train_recipe(recipe, run, TrainOptions(resume=True))
    assert (result.num_steps, result.num_steps_now) == (max_steps, 0)
    assert weights.read_bytes() == trained


def test_a_checkpoint_too_many_that_a_kill_after_the_last_save_left_goes_with_the_resume(narrow_recipe, tmp_path):
    run = RunDirectory(tmp_path / "run")
    training = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    train_recipe(narrow_recipe(training=training), run, TrainOptions())
    shutil.copytree(run.checkpoints_path / "step-000003", run.checkpoints_path / "step-000002")
    shutil.rmtree(run.adapter_path)
    train_recipe(narrow_recipe(training=training), run, TrainOptions(resume=True))
    assert [checkpoint.step for checkpoint in list_checkpoints(run.checkpoints_path)] == [3, 4]


def test_a_start_that_fails_leaves_the_directory_free_for_the_next_one(narrow_recipe, tmp_path):
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(RecipeError, match="matches no linear module"):
        train_recipe(narrow_recipe(lora={"target_modules": ("c_attn",)}), run, TrainOptions())
    train_recipe(narrow_recipe(), run, TrainOptions())
    assert run.is_finished
