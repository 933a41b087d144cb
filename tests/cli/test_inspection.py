"""`qlora runs` and `qlora doctor` through the real command line."""

from __future__ import annotations

import pytest

from qlora_cli.cli import app

pytestmark = pytest.mark.slow


def test_runs_before_the_first_run_says_how_to_start_one(call):
    ran = call("runs")
    assert (ran.code, ran.out) == (0, "")
    assert "qlora train RECIPE" in ran.err
    assert call("runs", "--json").json == []


def test_runs_lists_finished_and_stopped_runs_the_latest_first(call, recipe_file, tiny_base, monkeypatch):
    call("train", recipe_file, "--set", "name=first")
    call("train", recipe_file, "--set", "name=second", "--stop-after", 2)
    listed = call("runs", "--json").json
    assert [(run["run"], run["status"], run["num_steps"]) for run in listed] == [
        ("runs/second", "stopped", 2),
        ("runs/first", "finished", 4),
    ]
    assert listed[1]["base_model"] == str(tiny_base)
    assert listed[1]["eval_loss"] > 0
    monkeypatch.setattr(app.console.out, "_width", 200)
    header, second, first = call("runs").out.splitlines()
    assert header.split()[:4] == ["run", "status", "steps", "loss"]
    assert second.startswith("runs/second")
    assert f"{listed[1]['loss']:.4f}" in first


def test_doctor_tries_what_training_needs(call):
    ran = call("doctor", "--json")
    assert ran.code == 0
    found = {finding["what"]: finding for finding in ran.json}
    assert "torch" in found["versions"]["found"]
    assert found["device"]["found"].startswith("CPU")
    assert found["NF4 round trip"]["is_fine"]
    assert found["step through NF4, 8-bit AdamW"]["is_fine"]


def test_doctor_ends_with_1_when_something_does_not_work(call, monkeypatch):
    from qlora_cli.plan.machine import doctor

    monkeypatch.setattr(
        doctor, "examine", lambda: [doctor.DoctorFinding("NF4 round trip", "mean error 3", is_fine=False)]
    )
    ran = call("doctor")
    assert ran.code == 1
    assert "FAIL" in ran.out
