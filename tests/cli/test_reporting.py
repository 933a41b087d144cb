"""`qlora report` and `qlora compare` through the real command line, on runs that trained."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.slow


def test_train_writes_a_page_and_report_and_compare_read_the_runs(call, recipe_file):
    call("train", recipe_file, "--set", "name=first")
    call("train", recipe_file, "--set", "name=second", "--set", "lora.r=2", "--stop-after", 2)
    pages = []
    for name, status in (("first", "finished"), ("second", "stopped, can be resumed")):
        ran = call("report", f"runs/{name}", "--json")
        assert ran.code == 0, ran.err
        pages.append(ran.json["path"])
        with open(pages[-1], encoding="utf-8") as file:
            page = file.read()
        assert f"<b>{status}</b>" in page
        assert '<span class="t">' in page  # a row with its mask
    assert pages == ["runs/first/report.html", "runs/second/report.html"]
    ran = call("compare", "runs/first", "runs/second")
    assert ran.code == 0, ran.err
    assert "recipe lora.r" in ran.out
    assert "wrote runs/compare.html" in ran.out
    assert [run["run"] for run in call("compare", "runs/first", "runs/second", "--json").json["runs"]] == [
        "first",
        "second",
    ]


def test_what_is_no_run_is_one_line(call, tmp_path):
    for arguments in (("report", "nowhere"), ("compare", "nowhere", "nothing"), ("report", tmp_path)):
        ran = call(*arguments)
        assert ran.code == 2
        assert ran.err.startswith("error: ")
        assert "hint: " in ran.err
    assert call("report", "x", "--out", "page.txt").err.count("\n") == 2
