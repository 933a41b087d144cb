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


def setting_of(qalora, base, **others):
    settings = {"columns": {}, "r": 13, "group_size": 32, "steps": 40, "rows_per_step": 2, "max_length": 512}
    counts = {"test_rows": 2, "choice_rows": 2}
    return qalora.Setting(base=base, train=base, test=base, **settings, **counts, **others)


def test_qalora_gets_the_rank_that_trains_as_many_parameters(load, tmp_path):
    qalora, base = load("qalora"), load("random_base")
    shape = base.Shape(hidden=64, intermediate=128, layers=2, heads=2, kv_heads=1, vocab=512)
    base.write_random_base(tmp_path / "base", shape, 64, torch.device("cpu"))
    (r, trained), (grouped_r, grouped_trained) = qalora.ranks(setting_of(qalora, tmp_path / "base"))
    of_lora = 2 * (4 * 64 + 2 * 64 + 2 * 32 + 3 * (64 + 128))  # q and o, k and v, the three of the MLP; 2 layers
    assert (r, trained) == (13, 13 * of_lora)
    step = grouped_trained // grouped_r
    assert step == 2 * (4 * 2 + 2 * 64 + 2 * 32 + 2 * (2 + 128) + 4 + 64)
    assert abs(grouped_trained - trained) <= step / 2


def test_verdicts_of_the_qalora_benchmark_take_a_row_once_for_all_seeds(load):
    qalora = load("qalora")
    tokens = [10] * 40
    before = [{"seed": seed, "nats": [20.0 + row % 7 for row in range(40)], "right": [5] * 40} for seed in (1, 2)]
    after = [{"seed": seed, "nats": [19.0 + row % 5 for row in range(40)], "right": [5] * 40} for seed in (1, 2)]
    names = "QLoRA (NF4), merged, INT4", "QA-LoRA (INT4), merged"
    records = [
        one | {"model": name, "init": "default", "tokens": tokens}
        for name, side in zip(names, (before, after), strict=True)
        for one in side
    ]
    ((*models, _, loss, right, alone),) = qalora._verdicts(records)
    assert tuple(models) == names
    assert loss.startswith("better: -0.1875 ")  # 80 of row % 5 and 115 of row % 7 in 40 rows, less 40, in 400 tokens
    assert right.startswith("no evidence: +0.0000")
    assert alone == "better, better"
    assert qalora.judged(records[:2], records[2:])["loss"].num_questions == 40
