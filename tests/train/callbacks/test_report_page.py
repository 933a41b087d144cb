"""The page of a run that trains: there from the start, next to free, and never a reason to stop."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qlora_cli.run.own_files import run_files
from qlora_cli.train.callbacks import report_page
from qlora_cli.train.callbacks.report_page import LEAST_SECONDS, ReportPageCallback
from tests.report.runs import lines_of, write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", lines_of(30), status="started")


@pytest.fixture
def timed(run, monkeypatch):
    """The callback on a clock that moves when the test, or a page of a given cost, says so; and the pages so far."""

    def begin(cost):
        now, pages = [1000.0], []

        def write(run, *, is_held):
            now[0] += cost
            pages.append(now[0])
            return True

        monkeypatch.setattr(report_page, "time", SimpleNamespace(monotonic=lambda: now[0]))
        monkeypatch.setattr(report_page, "write_page", write)
        callback = ReportPageCallback(run)
        callback.on_train_begin(None, None, None)
        return callback, now, pages

    return begin


def test_pages_take_at_most_a_hundredth_of_the_time(timed):
    callback, now, pages = timed(cost=2.0)
    start = now[0]
    for _ in range(20_000):
        now[0] += 0.5
        callback.on_step_end(None, None, None)
        callback.on_evaluate(None, None, None)
    spent = 2.0 * (len(pages) - 1)
    assert 0.005 < spent / (now[0] - start) <= 0.01


def test_a_cheap_page_comes_every_half_minute_and_after_each_evaluation(timed):
    callback, now, pages = timed(cost=0.001)
    for _ in range(100):
        now[0] += 1
        callback.on_step_end(None, None, None)
    assert len(pages) == 1 + int(100 // LEAST_SECONDS)
    callback.on_evaluate(None, None, None)
    assert len(pages) == 2 + int(100 // LEAST_SECONDS)


def test_the_page_says_that_the_run_goes_on_and_belongs_to_the_run(run):
    ReportPageCallback(run).on_train_begin(None, None, None)
    assert "<b>training</b>" in run.report_path.read_text("utf-8")
    assert "report.html" in run_files(run.path)


def test_a_page_of_somebody_else_stays_and_is_a_note(run, capsys):
    run.report_path.write_text("mine")
    callback = ReportPageCallback(run)
    callback.on_train_begin(None, None, None)
    callback.on_evaluate(None, None, None)
    assert run.report_path.read_text() == "mine"
    assert capsys.readouterr().err.count("is not written") == 1
    assert "report.html" not in run_files(run.path)


def test_a_fault_in_the_page_is_a_note(run, monkeypatch, capsys):
    monkeypatch.setattr(report_page, "write_report", lambda *_, **__: 1 / 0)
    assert report_page.write_page(run, is_held=False) is False
    assert "is not written: ZeroDivisionError" in capsys.readouterr().err
