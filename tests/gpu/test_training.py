"""Training on CUDA: it learns, packed documents stay apart, and a resumed run is the uninterrupted one to the bit."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch

from qlora_cli.data.collator import Collator
from qlora_cli.model.adapter import attach_adapter
from qlora_cli.model.base import load_base
from qlora_cli.recipe.schema import LoraSection, ModelSection, QuantizationSection
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.manifest import read_manifest
from qlora_cli.run.metrics import read_metrics
from qlora_cli.train.preflight.attention import check_packed_isolation
from qlora_cli.train.session import TrainOptions, train_recipe
from tests.gpu.support import NEEDS_GPU, build_trainer

pytestmark = NEEDS_GPU

RECIPES = {
    "nf4": {},
    "nf4 with paged state": {"lora": {"r": 2048}},
    "nf4 in float16": {"model": {"dtype": "float16"}},
    "nf4 without packing": {"data": {"packing": False}},
    "nf4 with a bfloat16 adapter": {"lora": {"autocast_adapter_dtype": False}, "model": {"dtype": "bfloat16"}},
    "nf4 with 32-bit paged state": {"lora": {"r": 2048}, "training": {"optim": "paged_adamw_32bit"}},
    "int8": {"quantization": {"quant_type": "int8"}},
    "16-bit": {"quantization": None},
    "activations in host memory": {"training": {"activation_offloading": True}},
    "float32": {"quantization": None, "model": {"dtype": "float32"}},
}
needs_flash_attention = pytest.mark.skipif(find_spec("flash_attn") is None, reason="flash-attn is not installed")


def losses_of(run: RunDirectory) -> list[float]:
    return [line["loss"] for line in read_metrics(run.metrics_path) if "loss" in line]


def contents(run: RunDirectory, step: int) -> dict[str, bytes]:
    """Every file of a checkpoint but the trainer's state and checkpoint.json, which hold times and paths."""
    folder = run.checkpoints_path / f"step-{step:06d}"
    names = {path.name for path in folder.iterdir()}
    return {
        name: (folder / name).read_bytes()
        for name in names
        if name.startswith(("adapter_model", "optimizer", "scheduler", "random", "scaler"))
    }


@pytest.mark.parametrize("name", RECIPES)
def test_four_steps_and_four_after_a_resume_are_eight_straight_to_the_bit(gpu_recipe, tmp_path, deterministic, name):
    recipe = gpu_recipe(**RECIPES[name])
    straight, resumed = RunDirectory(tmp_path / "straight"), RunDirectory(tmp_path / "resumed")
    train_recipe(recipe, straight, TrainOptions())
    assert train_recipe(recipe, resumed, TrainOptions(stop_after=4)).num_steps == 4
    train_recipe(recipe, resumed, TrainOptions(resume=True))
    assert len(contents(straight, 8)) >= 7
    assert contents(straight, 8) == contents(resumed, 8)
    assert losses_of(straight) == losses_of(resumed)


def test_the_loss_falls_in_the_dtype_of_the_gpu_and_its_memory_is_counted(gpu_recipe, tmp_path):
    run = RunDirectory(tmp_path)
    result = train_recipe(gpu_recipe(training={"max_steps": 20}), run, TrainOptions())
    losses = losses_of(run)
    assert losses[-1] < losses[0] - 0.5
    manifest = read_manifest(run)
    assert manifest["dtype"] == ("bfloat16" if torch.cuda.get_device_capability()[0] >= 8 else "float16")
    assert manifest["hardware"]["device"] == torch.cuda.get_device_name()
    assert 0 < result.peak_memory_bytes <= torch.cuda.max_memory_reserved()


def test_bfloat16_trains_float32_adapters_through_autocast(gpu_recipe, tmp_path):
    trainer = build_trainer(gpu_recipe(model={"dtype": "bfloat16"}), RunDirectory(tmp_path))
    assert trainer.args.bf16
    assert trainer.args.n_gpu == 1
    assert trainer.args.optim == "paged_adamw_8bit"
    trained = {parameter.dtype for parameter in trainer.model.parameters() if parameter.requires_grad}
    assert trained == {torch.float32}


def test_float16_trains_with_a_loss_scale_that_checkpoints_keep(gpu_recipe, tmp_path):
    run = RunDirectory(tmp_path)
    trainer = build_trainer(gpu_recipe(model={"dtype": "float16"}, training={"max_steps": 20}), run)
    assert trainer.args.fp16
    trainer.train()
    losses = losses_of(run)
    assert losses[-1] < losses[0] - 0.5
    saved = json.loads((run.checkpoints_path / "step-000020" / "scaler.json").read_text())
    assert saved["scale"] == trainer.accelerator.scaler.get_scale() > 1


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [("float32", 1e-5), ("bfloat16", 2**-7), ("float16", 2**-9)],  # 0 is expected; the bound is a last place of 1
)
def test_packed_documents_do_not_see_each_other(tiny_base, dtype, bound):
    base = load_base(ModelSection(base_model=str(tiny_base), dtype=dtype), QuantizationSection())
    assert check_packed_isolation(attach_adapter(base, LoraSection()), Collator(pad_token_id=0)).max_change <= bound


@needs_flash_attention
@pytest.mark.parametrize("packing", [True, False], ids=["packed", "unpacked"])
def test_flash_attention_learns_from_flattened_rows(gpu_recipe, tmp_path, packing):
    model = {"attn_implementation": "flash_attention_2", "dtype": "bfloat16"}
    run = RunDirectory(tmp_path)
    train_recipe(gpu_recipe(model=model, training={"max_steps": 20}, data={"packing": packing}), run, TrainOptions())
    losses = losses_of(run)
    assert losses[-1] < losses[0] - 0.5


@needs_flash_attention
def test_flash_attention_on_flattened_rows_takes_the_steps_of_sdpa_on_padded_ones(gpu_recipe, tmp_path):
    runs = []
    for attention in ("sdpa", "flash_attention_2"):
        recipe = gpu_recipe(model={"attn_implementation": attention, "dtype": "bfloat16"}, lora={"lora_dropout": 0.0})
        runs.append(RunDirectory(tmp_path / attention))
        train_recipe(recipe, runs[-1], TrainOptions())
    assert losses_of(runs[1]) == pytest.approx(losses_of(runs[0]), rel=0.02)
