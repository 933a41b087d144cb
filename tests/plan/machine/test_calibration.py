"""What a calibration wrote is used for the same GPU, driver and torch, and for nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from qlora_cli.cache_folder import CACHE_ELSEWHERE
from qlora_cli.errors import IdentityError
from qlora_cli.plan.budget import plan
from qlora_cli.plan.machine import calibration as module
from qlora_cli.plan.machine.calibration import Overheads, find_overheads, overheads_root, read_overheads, save_overheads
from qlora_cli.plan.parameter_counts import parameter_counts
from qlora_cli.plan.report import choose_target
from qlora_cli.plan.throughput import estimate_pace
from tests.plan.bases import config_of, request_for

MIB = 2**20

MEASURED = Overheads(
    gpu="NVIDIA GeForce RTX 4090",
    driver="550.54.15",
    torch=torch.__version__,
    measured_on="2026-11-25",
    memory_bytes=24_000 * MIB,
    context_bytes=700 * MIB,
    cublas_bytes=17 * MIB,
    reached_tflops=100.0,
)
"""Invented figures: no GPU gave them."""


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path, empty_cache):
    """A machine with that driver, on which nothing is measured yet."""
    (tmp_path / "version").write_text("550.54.15\n")
    monkeypatch.setattr(module, "DRIVER_VERSION", tmp_path / "version")


def is_4090(name):
    return name.endswith("4090")


def test_what_is_saved_is_found():
    path = save_overheads(MEASURED)
    assert path.parent == overheads_root()
    assert find_overheads(is_4090) == read_overheads(path) == MEASURED


def test_a_second_calibration_replaces_the_first():
    save_overheads(MEASURED)
    again = replace(MEASURED, measured_on="2026-11-26", context_bytes=1)
    save_overheads(again)
    assert find_overheads(is_4090) == again
    assert len(list(overheads_root().iterdir())) == 1


@pytest.mark.parametrize("other", [{"gpu": "Tesla T4"}, {"driver": "535.1"}, {"torch": "2.12.0"}], ids=str)
def test_figures_of_another_gpu_driver_or_torch_are_not_used(other):
    save_overheads(replace(MEASURED, **other))
    assert find_overheads(is_4090) is None


def test_nothing_is_found_where_nothing_was_measured():
    assert find_overheads(is_4090) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:40],
        lambda text: "[]",
        lambda text: text.replace('"gpu"', '"card"'),
        lambda text: text.replace(str(700 * MIB), "-1"),
        lambda text: text.replace(str(700 * MIB), "true"),
        lambda text: text.replace("100.0", "1e999"),
    ],
)
def test_a_damaged_file_is_said_and_not_used(damage, capsys):
    path = save_overheads(MEASURED)
    path.write_text(damage(path.read_text()))
    assert find_overheads(is_4090) is None
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert str(path) in told
    assert "qlora plan --calibrate" in told
    with pytest.raises(IdentityError):
        read_overheads(path)


def test_the_bill_holds_what_was_measured_and_says_so():
    save_overheads(MEASURED)
    target = choose_target("4090", None)
    assert target.memory_bytes == 24_000 * MIB
    by_name = {each.name: each for each in plan(request_for(config_of("llama"), target.device)).needs.overheads}
    assert by_name["CUDA context"].num_bytes == 700 * MIB
    assert by_name["cuBLAS workspaces"].num_bytes == 17 * MIB
    assert by_name["CUDA context"].source == by_name["cuBLAS workspaces"].source == "measured here on 2026-11-25"


def test_time_is_told_by_the_rate_that_was_reached():
    card = choose_target("4090", None).card
    request = request_for(config_of("llama"), choose_target("4090", None).device)
    save_overheads(replace(MEASURED, reached_tflops=2 * card.dense_tflops))
    faster = replace(request, device=choose_target("4090", None).device)
    facts = parameter_counts(request)
    assumed, measured = (estimate_pace(each, facts, card) for each in (request, faster))
    assert measured.tokens_per_second > assumed.tokens_per_second
    assert "35% of 165.2 TFLOPS" in assumed.rate
    assert measured.rate == "330 TFLOPS, measured here on 2026-11-25"


def test_another_card_is_planned_without_them():
    save_overheads(MEASURED)
    assert choose_target("t4", None).device.overheads is None
    assert choose_target(None, 24.0).device.overheads is None


def test_the_file_is_plain_json():
    assert json.loads(save_overheads(MEASURED).read_text())["context_bytes"] == 700 * MIB


def test_a_cache_that_cannot_be_written_is_said(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(NotADirectoryError) as caught:
        save_overheads(MEASURED)
    assert caught.value.__notes__ == [CACHE_ELSEWHERE]
