"""Losses of eight steps as they were when they were last looked at; a refactor gives the same.

`pytest tests/train/test_golden.py --update-golden` writes them again, after a change that is meant to change them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.metrics import read_metrics
from qlora_cli.train.session import TrainOptions, train_recipe

GOLDEN = Path(__file__).parent.parent / "golden" / "losses.json"

CASES = {
    "fp32": {},
    "fp32, unpacked": {"data": {"packing": False}},
    "nf4": {"quantization": {}},
    "nf4, loftq": {"quantization": {}, "lora": {"init_lora_weights": "loftq"}},
}


@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_of_the_last_look(small_recipe, tmp_path, request, case):
    run = RunDirectory(tmp_path / "run")
    train_recipe(small_recipe(**CASES[case]), run, TrainOptions())
    losses = [line["loss"] for line in read_metrics(run.metrics_path) if "loss" in line]
    golden = json.loads(GOLDEN.read_text())
    if request.config.getoption("--update-golden"):
        GOLDEN.write_text(json.dumps(golden | {case: losses}, indent=2) + "\n")
        return
    assert losses == pytest.approx(golden[case], rel=2e-4)  # other CPUs round other sums
