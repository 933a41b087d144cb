"""Benchmarks of lm-eval and a judge, asked by `qlora eval` beside a file of questions."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from qlora_cli.chat_server import ChatServer
from qlora_cli.errors import ArgumentError
from qlora_cli.evaluate.harness import HarnessRequest, load_harness, run_harness
from qlora_cli.evaluate.request import EvalRequest, measure
from qlora_cli.evaluate.tasks.load import load_task
from qlora_cli.model.tuned import find_tuned, load_tuned
from qlora_cli.recipe.eval_schema import TaskSection
from qlora_cli.run.eval_results import eval_files
from tests.evaluate.judge_server import Answers, says, serving
from tests.evaluate.local_benchmarks import write_benchmarks

pytestmark = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed")


@pytest.fixture(scope="module")
def source(tuned, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters") / "one"
    tuned.model.save_pretrained(folder)
    return find_tuned(folder)


def test_figures_of_a_benchmark_are_those_of_the_harness_with_a_verdict_each(source, tmp_path):
    files = write_benchmarks(tmp_path / "tasks")
    tasks = tuple(TaskSection(path=str(files / name)) for name in ("choice.yaml", "text.yaml"))
    results = measure([source], EvalRequest(tasks=tasks, limit=12, batch_size=4, general_text="none")).results
    loaded = load_tuned(source)
    harness = load_harness(HarnessRequest(tuple(task.path for task in tasks), limit=12))
    expected = {
        (one.task.removeprefix("local_"), one.name): one.value
        for one in run_harness(harness, loaded.model, loaded.tokenizer, 4).measures
    }
    assert {(one.task, one.measure): one.values["tuned"].value for one in results.measures} == pytest.approx(expected)
    assert {(one.task, one.measure) for one in results.verdicts} == set(expected)
    assert {one.num_questions for one in results.verdicts} == {12}
    answers = (source.folder / "eval" / "answers-choice.jsonl").read_text().splitlines()
    assert [set(json.loads(line)["scores"]) for line in answers] == [{"acc", "acc_norm"}] * 12


def test_a_benchmark_takes_nothing_that_only_a_file_of_rows_has(tmp_path):
    with pytest.raises(ArgumentError, match="'metrics' is not for a benchmark"):
        load_task(TaskSection(path="hellaswag", metrics=("contains",)))


def test_a_judge_is_one_more_measure_and_is_asked_once(source, chat_data, tmp_path):
    task = TaskSection(path=str(chat_data), max_new_tokens=6, limit=5)
    answers = Answers(says("Reasons.\n[[A]]"))  # the first place, whatever stands there
    with serving(answers) as url:
        request = EvalRequest(tasks=(task,), general_text="none", judge=ChatServer(url, "a-judge"))
        results = measure([source], request).results
        num_asked = len(answers.asked)
        again = measure([source], request).results
    [verdict] = [one for one in results.verdicts if one.measure == "judge"]
    assert (verdict.outcome, verdict.difference) == ("no evidence", 0.0)
    [figures] = [one for one in results.measures if one.measure == "judge"]
    assert "judged otherwise with the places exchanged" in figures.rule
    assert 0 < num_asked == len(answers.asked)
    assert again.verdicts == results.verdicts
    assert "judgements.jsonl" in eval_files(source.folder / "eval")


def test_a_group_finds_its_parts_beside_its_file(source, tmp_path):
    files = write_benchmarks(tmp_path / "tasks")
    tasks = (TaskSection(path=str(files / "group.yaml")),)
    results = measure([source], EvalRequest(tasks=tasks, limit=4, general_text="none")).results
    assert {(one.task, one.measure, one.num_questions) for one in results.verdicts} == {("group", "acc", 8)}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_fewshot": 2}, "--num-fewshot is for benchmarks"),
        ({"judge": ChatServer("http://127.0.0.1:1/v1", "m")}, "--judge compares generated answers"),
    ],
)
def test_an_option_that_no_task_reads_is_refused(source, tmp_path, options, said):
    rows = tmp_path / "choices.jsonl"
    rows.write_text(json.dumps({"question": "2 + 2?", "choices": ["3", "4"], "answer": 1}) + "\n")
    with pytest.raises(ArgumentError, match=said):
        measure([source], EvalRequest(tasks=(TaskSection(path=str(rows)),), general_text="none", **options))


def test_judgements_of_somebody_else_are_refused_before_a_model_is_asked(tuned, chat_data, tmp_path):
    tuned.model.save_pretrained(tmp_path / "one")
    notes = tmp_path / "one" / "eval" / "judgements.jsonl"
    notes.parent.mkdir()
    notes.write_text("my notes\n")
    request = EvalRequest(tasks=(TaskSection(path=str(chat_data)),), judge=ChatServer("http://127.0.0.1:1/v1", "m"))
    with pytest.raises(ArgumentError, match="was not written by qlora"):
        measure([find_tuned(tmp_path / "one")], request)
    assert [path.read_text() for path in notes.parent.iterdir()] == ["my notes\n"]
