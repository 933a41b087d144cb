"""Memory on CUDA: it really runs out and the run continues, moved activations change nothing, and what a run has taken
stands beside what was predicted.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from qlora_cli.errors import ResourceError
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.manifest import read_manifest
from qlora_cli.run.metrics import read_metrics
from qlora_cli.train.session import TrainOptions, train_recipe
from tests.gpu.support import NEEDS_GPU

pytestmark = NEEDS_GPU

LARGE = {
    "lora": {"lora_dropout": 0.0},
    "data": {"packing": False, "max_length": 512},
    "training": {"per_device_train_batch_size": 32, "gradient_accumulation_steps": 1, "max_steps": 4},
}
"""Steps of 32 rows, without dropout, which draws other elements where rows are done in pieces."""

SMALL_SHARE_BYTES = 24 * 2**20


def losses_of(run: RunDirectory) -> list[float]:
    return [line["loss"] for line in read_metrics(run.metrics_path) if "loss" in line]


@pytest.fixture
def little_memory() -> Iterator[None]:
    """This process may reserve some megabytes more than it has."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + SMALL_SHARE_BYTES) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def test_where_memory_really_runs_out_the_run_goes_on_in_pieces_with_the_same_losses(
    gpu_recipe, tmp_path, request, capsys
):
    recipe = gpu_recipe(**LARGE)
    runs = [RunDirectory(tmp_path / name) for name in ("plenty", "little")]
    train_recipe(recipe, runs[0], TrainOptions())
    request.getfixturevalue("little_memory")
    try:
        train_recipe(recipe, runs[1], TrainOptions())
    except ResourceError as error:  # pragma: no cover - says how to set SMALL_SHARE_BYTES on another card
        pytest.fail(f"not even a row fits into {SMALL_SHARE_BYTES} bytes: {error}")
    assert "out of memory in step" in capsys.readouterr().err
    assert losses_of(runs[1]) == pytest.approx(losses_of(runs[0]), rel=0.02)


def test_activations_in_host_memory_change_no_loss(gpu_recipe, tmp_path, deterministic):
    losses = []
    for is_moved in (False, True):
        run = RunDirectory(tmp_path / str(is_moved))
        train_recipe(gpu_recipe(training={"activation_offloading": is_moved}), run, TrainOptions())
        losses.append(losses_of(run))
    assert losses[0] == losses[1]


def test_predicted_and_measured_bytes_stand_in_the_manifest(gpu_recipe, tmp_path):
    run = RunDirectory(tmp_path)
    train_recipe(gpu_recipe(), run, TrainOptions(check_memory=True))
    memory = read_manifest(run)["memory"]
    assert memory["measured_bytes"].keys() == memory["predicted_bytes"].keys() == {"allocated", "reserved"}
    assert memory["measured_bytes"]["allocated"] == pytest.approx(memory["predicted_bytes"]["allocated"], rel=0.1)


def test_automatic_batches_take_what_the_plan_says_fits(gpu_recipe, tmp_path, capsys):
    training = {"per_device_train_batch_size": "auto", "gradient_accumulation_steps": 12}
    train_recipe(gpu_recipe(training=training), RunDirectory(tmp_path), TrainOptions(check_memory=True))
    assert "batch size: 12 of the 12 rows of a step in one pass" in capsys.readouterr().err
