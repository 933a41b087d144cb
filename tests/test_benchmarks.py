"""Benchmarks measure where a GPU is; here is held that the parts which they stand on still fit the project."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

from qlora_cli.run.directory import RunDirectory
from qlora_cli.train.setup import setup_model

pytestmark = pytest.mark.slow

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """Load a script of the folder by its name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.delitem(sys.modules, "plan", raising=False)
    return importlib.import_module


@pytest.mark.parametrize("packed", [True, False])
def test_a_recipe_of_the_plan_benchmark_trains_on_full_rows(load, packed, tmp_path, empty_cache):
    plan, base = load("plan"), load("random_base")
    shape = base.Shape(hidden=64, intermediate=128, layers=1, heads=2, kv_heads=1, vocab=512)
    base.write_random_base(tmp_path / "base", shape, 64, torch.device("cpu"))
    case = plan.Case("toy", 2, 32, 4, packed=packed, accumulation=2)
    recipe, run = plan.recipe_of(case, tmp_path / "base"), RunDirectory(tmp_path / "run")
    model = setup_model(recipe, run, is_resumed=False)
    documents = 4 if packed else 1
    trainer = load("random_rows").trainer_on_random_rows(recipe, run, model, documents)
    rows = trainer.train_dataset
    assert len(rows) == plan.NUM_STEPS * 2 * 2
    assert {len(row["input_ids"]) for row in rows} == {32}
    assert {len(row["seq_lengths"]) for row in rows} == {documents}


def test_the_recipes_of_the_plan_benchmark_cover_what_it_says(load):
    cases = load("plan").CASES
    assert len(cases) == 12
    assert {case.base for case in cases} == {"1B", "7B", "8B", "13B"}
    for name, least, most in (("batch_size", 1, 8), ("length", 512, 8192), ("r", 8, 64)):
        values = [getattr(case, name) for case in cases]
        assert (min(values), max(values)) == (least, most)
    for name in ("checkpointing", "double_quant", "packed"):
        assert {getattr(case, name) for case in cases} == {True, False}


def test_an_error_is_that_of_the_prediction(load):
    plan = load("plan")
    figures = [
        {"predicted": {"reserved": 110}, "measured": {"reserved": 100}},
        {"predicted": {"reserved": 98}, "measured": {"reserved": 100}},
        {"not_run": "needs 90.0 GiB"},
    ]
    assert plan.worst(figures) == ["reserved: worst error +10.00%, lowest -2.00%, over 2 recipes"]
    assert "not run: needs 90.0 GiB" in plan.row(plan.CASES[0], figures[2])
