"""Runs beside each other: what differs, and verdicts on the questions that both have answered."""

from __future__ import annotations

import json

import pytest

from qlora_cli.errors import ArgumentError
from qlora_cli.report.compare import NOT_RECORDED, compare_runs
from qlora_cli.report.compare_page import read_and_compare
from qlora_cli.report.record import read_record
from tests.report.runs import RECIPE, add_results, lines_of, write_run


@pytest.fixture
def runs(tmp_path):
    return write_run(tmp_path / "a", lines_of(60)), write_run(tmp_path / "b", lines_of(40))


def compared(*runs):
    return compare_runs([read_record(run) for run in runs])


def answer(run, scores):
    """Answers of the run to questions 0, 1, 2 and so on."""
    rows = [
        {
            "prompt": str(number),
            "reference": "1",
            "answers": {"base": "0", "tuned": "1"},
            "scores": {"exact_match": {"base": 0, "tuned": score}},
        }
        for number, score in enumerate(scores)
    ]
    (run.eval_path / "answers-sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_only_keys_that_differ_are_listed(runs):
    runs[1].recipe_path.write_text(RECIPE.replace("r: 16", "r: 8"), encoding="utf-8")
    assert [(each.section, each.key, each.values) for each in compared(*runs).differences] == [
        ("recipe", "lora.r", ("16", "8"))
    ]


def test_a_key_that_one_run_does_not_have_differs(runs):
    manifest = json.loads(runs[1].manifest_path.read_text())
    del manifest["versions"]["torch"]
    runs[1].manifest_path.write_text(json.dumps(manifest))
    [found] = compared(*runs).differences
    assert (found.key, found.values) == ("torch", ("2.13.0+cpu", NOT_RECORDED))


def test_a_run_in_figures(runs):
    line = compared(*runs).runs[0]
    assert (line.run, line.num_steps, line.max_steps, line.best_step) == ("a", 60, 60, 60)
    assert line.best_eval_loss == pytest.approx(1.1067, abs=1e-3)


def test_answers_to_the_same_questions_are_paired_and_others_counted(runs):
    for run in runs:
        add_results(run)
    answer(runs[0], [0] * 40 + [1] * 60)
    answer(runs[1], [1] * 100 + [1] * 7)
    [found] = compared(*runs).verdicts
    assert (found.run, found.against, found.task, found.measure) == ("b", "a", "sums", "exact_match")
    assert found.verdict.difference == pytest.approx(0.4)
    assert (found.verdict.outcome, found.verdict.num_questions, found.num_apart) == ("better", 100, 7)


def test_runs_without_answers_have_no_verdict(runs):
    assert compared(*runs).verdicts == ()


def test_the_page_lies_beside_the_first_run(runs):
    found = read_and_compare(runs)
    assert found.page == runs[0].path.parent / "compare.html"
    assert found.as_dict()["page"] == str(found.page)


def test_two_runs_of_one_name_are_told_by_their_paths(tmp_path):
    runs = [write_run(tmp_path / folder / "run", lines_of(20)) for folder in ("x", "y")]
    assert [line.run for line in compared(*runs).runs] == [str(run.path) for run in runs]


@pytest.mark.parametrize("num", [0, 1])
def test_fewer_than_two_runs_are_refused(runs, num):
    with pytest.raises(ArgumentError) as raised:
        read_and_compare(runs[:num])
    assert "qlora compare RUN RUN" in raised.value.problems[0].hint


def test_losses_on_the_same_rows_are_paired_and_others_counted(runs):
    for run, shift in zip(runs, (0.0, -0.5), strict=True):
        add_results(run)
        rows = [
            {"task": "held-out", "model": model, "row": str(number), "tokens": 10, "nats": 20 + 10 * shift + number % 7}
            for model in ("base", "tuned")
            for number in range(50 if shift else 40)
        ]
        (run.eval_path / "losses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (run.eval_path / "answers-sums.jsonl").unlink()
    [found] = compared(*runs).verdicts
    assert (found.task, found.measure, found.verdict.outcome) == ("held-out", "loss", "better")
    assert found.verdict.difference == pytest.approx(-0.5)
    assert (found.verdict.num_questions, found.num_apart) == (40, 10)
