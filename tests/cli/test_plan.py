"""`qlora plan`, through the real command line on the tiny base."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.slow

SKETCH = ("--params", "0.6e9", "--hidden", "512", "--layers", "4")


@pytest.fixture
def planned(call, recipe_file):
    """The plan of the small recipe as JSON."""
    return lambda *options: call("plan", recipe_file, "--json", *options)


def test_a_plan_is_a_verdict_a_bill_and_facts(call, recipe_file):
    ran = call("plan", recipe_file, "--gpu", "4090")
    assert ran.code == 0
    assert ran.out.startswith("fits: 0.5")
    for told in ("of the 23.51 GiB of RTX 4090", "CUDA context", "of what a process can have", "free", "tokens/s"):
        assert told in ran.out
    assert "LoRA on the 16-bit base, r 4" in ran.out


def test_the_lines_of_the_bill_add_up(planned):
    plan = planned("--gpu", "3060").json
    assert sum(line["num_bytes"] for line in plan["bill"]) == plan["device_bytes"]
    assert plan["fits"] is True


def test_what_does_not_fit_ends_with_exit_code_5(call, recipe_file):
    ran = call("plan", recipe_file, "--memory-gb", "0.2")
    assert ran.code == 5
    assert ran.out.startswith("does not fit: ")
    assert "more than the 0.20 GiB" in ran.out


def test_json_says_too_that_it_does_not_fit(planned):
    ran = planned("--memory-gb", "0.2")
    assert (ran.code, ran.json["fits"]) == (5, False)


def test_steps_and_tokens_are_those_of_the_data(planned, call, recipe_file):
    checked = call("data", "check", recipe_file, "--json").json
    work = planned("--gpu", "t4").json["workload"]
    assert (work["num_rows"], work["num_tokens"]) == (checked["num_packed_rows"], checked["num_tokens"])
    assert work["num_steps"] == 4


def test_data_that_is_not_there_is_said_and_no_obstacle(call, recipe_file, tmp_path):
    values = json.loads(recipe_file.read_text())
    values["data"]["train"] = str(tmp_path / "nowhere.jsonl")
    recipe_file.write_text(json.dumps(values))
    ran = call("plan", recipe_file, "--gpu", "t4")
    assert ran.code == 0
    assert "steps are not known: " in ran.out
    assert "nowhere.jsonl" in ran.out


def test_without_a_card_nothing_is_said_about_fitting(planned):
    ran = planned()
    assert (ran.code, ran.json["fits"], ran.json["pace"]) == (0, None, None)


def test_set_changes_what_is_planned(planned):
    small = planned("--gpu", "t4").json["parameters"]["trained"]
    assert planned("--gpu", "t4", "--set", "lora.r=8").json["parameters"]["trained"] == 2 * small


def test_a_base_of_which_only_the_size_is_known_is_sketched(call):
    ran = call("plan", *SKETCH, "--gpu", "4090", "--json")
    assert ran.code == 0
    assert ran.json["parameters"]["base"] == pytest.approx(0.6e9, rel=0.02)
    assert ran.json["workload"] is None


def test_a_sketch_with_a_part_missing_is_refused(call):
    ran = call("plan", "--params", "8e9", "--hidden", "4096")
    assert ran.code == 2
    assert "--layers" in ran.err


def test_no_recipe_and_no_sketch_is_one_line_and_a_hint(call):
    ran = call("plan")
    assert ran.code == 2
    assert ran.err.startswith("error: there is no recipe to plan\nhint: ")


def test_a_mistyped_card_is_one_line_and_a_suggestion(call, recipe_file):
    ran = call("plan", recipe_file, "--gpu", "rtx 4900")
    assert ran.code == 2
    assert "did you mean 'RTX 4090'" in ran.err


def test_card_and_memory_exclude_each_other(call, recipe_file):
    assert call("plan", recipe_file, "--gpu", "t4", "--memory-gb", "8").code == 2


def test_two_gpus_take_twice_the_rows_and_the_same_memory_each(planned):
    settings = ("--gpu", "t4", "--set", "training.max_steps=null", "--set", "training.num_train_epochs=1")
    one, two = planned(*settings).json, planned(*settings, "--num-gpus", "2").json
    assert (one["target"]["num_gpus"], two["target"]["num_gpus"]) == (1, 2)
    assert two["rows_per_step"] == 2 * one["rows_per_step"]
    assert two["workload"]["num_steps"] == -(-one["workload"]["num_steps"] // 2)
    assert two["pace"]["tokens_per_second"] == pytest.approx(2 * one["pace"]["tokens_per_second"])
    assert two["pace"]["seconds_per_step"] == one["pace"]["seconds_per_step"]
    assert two["disk"] == one["disk"]
    assert two["device_bytes"] >= one["device_bytes"]


def test_what_several_gpus_share_is_said(call, recipe_file):
    ran = call("plan", recipe_file, "--gpu", "t4", "--num-gpus", "2")
    assert "on each of 2 GPUs" in ran.out.splitlines()[0]
    assert "each holds the whole model" in ran.out
    assert "what NCCL takes is not in the budget" in ran.out


def test_no_gpus_are_refused(call, recipe_file):
    assert call("plan", recipe_file, "--num-gpus", "0").code == 2


def test_calibration_without_a_gpu_is_one_line_and_a_hint(call, empty_cache):
    ran = call("plan", "--calibrate")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: nothing was measured: torch sees no CUDA GPU\nhint: ")
    assert list(empty_cache.iterdir()) == []


@pytest.fixture
def measured(monkeypatch, empty_cache):
    """A machine whose calibration finds invented figures."""
    import torch

    from qlora_cli.plan import calibrate
    from qlora_cli.plan.machine import calibration

    driver = "unknown", torch.__version__, "2026-11-25"
    found = calibration.Overheads("Tesla T4", *driver, 15 * 2**30, 2**29, 2**24, 20.0)
    monkeypatch.setattr(calibrate, "calibrate", lambda: found)
    monkeypatch.setattr(calibration, "DRIVER_VERSION", empty_cache / "none")


def test_a_calibration_is_shown_and_kept(call, measured, empty_cache):
    ran = call("plan", "--calibrate")
    assert ran.code == 0
    assert "Tesla T4, driver unknown" in ran.out
    assert "0.50 GiB" in ran.out
    [path] = (empty_cache / "calibration").iterdir()
    assert str(path) in ran.out
    assert call("plan", "--calibrate", "--json").json["file"] == str(path)


def test_a_plan_after_a_calibration_says_that_it_stands_on_it(call, recipe_file, measured):
    ran = call("plan", recipe_file, "--calibrate", "--gpu", "t4", "--json")
    assert ran.json["target"]["overheads"]["context_bytes"] == 2**29
    assert {"what": "CUDA context", "num_bytes": 2**29} in ran.json["bill"]
    assert ran.err.startswith("measured Tesla T4; ")
    told = call("plan", recipe_file, "--gpu", "t4").out
    assert "measured  CUDA context, cuBLAS workspaces and rate, measured here on 2026-11-25" in told
    assert call("plan", recipe_file, "--gpu", "4090", "--json").json["target"]["overheads"] is None


def test_fit_needs_a_memory(call, recipe_file):
    ran = call("plan", recipe_file, "--fit")
    assert ran.code == 2
    assert "--memory-gb 24" in ran.err


def test_what_fit_says_fits_and_the_next_does_not(planned):
    small = ("--memory-gb", "0.6", "--set", "lora.target_modules=[q_proj]")
    found = planned(*small, "--fit").json
    largest = {each["key"]: each["value"] for each in found["fit"]}
    batch = largest["training.per_device_train_batch_size"]
    assert planned(*small, "--set", f"training.per_device_train_batch_size={batch}").code == 0
    assert planned(*small, "--set", f"training.per_device_train_batch_size={batch + 1}").code == 5
    assert [saving["saved_bytes"] for saving in found["knobs"]] == sorted(
        (saving["saved_bytes"] for saving in found["knobs"]), reverse=True
    )
    assert all(saving["override"].startswith("--set ") for saving in found["knobs"])


def test_the_timeline_is_a_page(call, recipe_file, tmp_path):
    ran = call("plan", recipe_file, "--gpu", "t4", "--timeline", "pages/step.html")
    assert ran.code == 0
    assert "wrote pages/step.html" in ran.err
    assert "<svg " in (tmp_path / "pages" / "step.html").read_text()


def test_init_for_a_card_writes_what_plan_finds_to_fit(call, tiny_base, chat_data, tmp_path):
    ran = call("init", "--base", tiny_base, "--data", chat_data, "--gpu", "t4", "--out", "new.yaml")
    assert ran.code == 0
    assert "planned for T4: " in ran.out
    assert call("plan", "new.yaml", "--gpu", "t4").code == 0
    settings = [line for line in (tmp_path / "new.yaml").read_text().splitlines() if line[:2] == "  "]
    assert sum("#" in line for line in settings) == len(settings)
    assert max(map(len, settings)) < 160 + len(str(chat_data))


def test_init_refuses_a_file_that_is_there_before_it_plans(call, tmp_path):
    (tmp_path / "recipe.yaml").write_text("mine")
    ran = call("init", "--gpu", "nonsense")
    assert ran.code == 2
    assert "is there already" in ran.err


def test_what_fits_with_little_to_spare_is_said(call, planned, recipe_file):
    needed = planned("--memory-gb", "8").json["device_bytes"] / 2**30
    ran = call("plan", recipe_file, "--memory-gb", f"{1.02 * needed:.4f}")
    assert ran.code == 0
    assert ran.out.startswith("fits narrowly: ")
