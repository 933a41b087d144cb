"""What a plan prints can be pasted from any screen, and shows no zero for what is not nothing."""

from __future__ import annotations

import re
import shlex

import pytest

from qlora_cli import console
from qlora_cli.plan.fit import Fit
from qlora_cli.plan.report import choose_target, make_report
from qlora_cli.plan.report_view import show_fits, show_knobs, show_plan
from qlora_cli.plan.savings import MemorySaving
from qlora_cli.plan.trace.request import PlanRequest
from tests.plan.bases import config_of, request_for

GIB = 2**30
KNOBS = [
    MemorySaving("fewer rows a pass, the same rows a step, which takes a while to say in words that are long enough",
         {"training.per_device_train_batch_size": 2, "training.gradient_accumulation_steps": 8}, 3 * GIB),
    MemorySaving("adapters on attention only",
         {"lora.target_modules": ("q_proj", "k_proj", "v_proj", "o_proj")}, 70_000),
]  # fmt: skip
FITS = [
    Fit("training.per_device_train_batch_size", 12, 3 * GIB, {}, most=1024),
    Fit("data.max_length", 8192, 4 * GIB, {}, most=8192),
    Fit("lora.r", None, 30 * GIB, {}, most=512),
]


@pytest.fixture(scope="module")
def report():
    target = choose_target("t4", None)
    request = request_for(config_of("llama"), target.device)
    return make_report(PlanRequest(request.recipe, request.config, target.device), target, with_data=False)


@pytest.fixture(params=[40, 80, 200])
def shown(request, report, capsys, monkeypatch):
    """What is printed on a screen of a width."""
    monkeypatch.setattr(console.out, "_width", request.param)
    show_fits(FITS, report)
    show_knobs(KNOBS, report)
    return request.param, capsys.readouterr().out


def test_commands_are_pasted_whole_whatever_the_width(shown):
    joined = shown[1].replace(" \\\n", "")  # as a shell reads it
    commands = [line.strip() for line in joined.splitlines() if line.strip().startswith("--set")]
    expected = [each.override for each in (*FITS, *KNOBS) if each.override]
    assert [shlex.split(line) for line in commands] == [shlex.split(line) for line in expected]


def test_only_a_single_option_is_ever_longer_than_the_screen(shown):
    width, text = shown
    for line in text.splitlines():
        assert len(line) <= width or line.count("--set") == 1


def test_it_is_said_how_far_was_searched(shown):
    words = " ".join(shown[1].split())
    assert "training.per_device_train_batch_size 12: takes 3.00 GiB; searched up to 1,024 " in words
    assert "data.max_length 8,192: takes 4.00 GiB; not searched beyond 8,192 " in words
    assert "lora.r: not even 8 fits, which takes 30.00 GiB" in words


def test_what_is_small_has_a_unit_that_shows_it(shown):
    assert "adapters on attention only: 68.4 KiB less" in " ".join(shown[1].split())


def test_the_bill_of_a_small_model_is_in_mib_without_zeros_and_adds_up(report, capsys):
    show_plan(report)
    lines = capsys.readouterr().out.partition("memory at the peak")[2].partition("\n\n")[0].splitlines()
    assert lines[0].split()[0] == "MiB"
    cells = [re.split(r" {2,}", line.strip()) for line in lines[1:]]
    values = {name: float(figure.strip("<").replace(",", "")) for name, figure, *_ in cells}
    assert len(values) > 8
    assert min(values.values()) > 0
    *parts, whole = [value for name, value in values.items() if name != "free"]
    assert whole == pytest.approx(sum(parts), abs=0.1 * len(parts))


def test_an_estimate_of_the_rate_is_called_one_and_has_two_digits(report, capsys):
    show_plan(report)
    rate = re.search(r"time +estimate: about ([\d,]+) tokens/s", capsys.readouterr().out).group(1)
    assert re.fullmatch(r"[1-9]\d?(,?0)*", rate.replace(",", ""))
