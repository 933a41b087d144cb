"""Benchmarks of lm-evaluation-harness as tasks: each one, or a group of them, by its name or its YAML file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from qlora_cli.evaluate.harness import HarnessRequest, group_in, load_harness, run_harness, task_file
from qlora_cli.evaluate.harness_results import HarnessMeasure, HarnessResult
from qlora_cli.evaluate.kept import Value, key_of
from qlora_cli.evaluate.scores import AnswerText, Measured, TaskScores
from qlora_cli.evaluate.tasks.task import Subject
from qlora_cli.evaluate.work import Work
from qlora_cli.recipe.eval_schema import TaskSection


def is_benchmark(path: str) -> bool:
    """Whether a task is a benchmark: a file of lm-eval's, or a bare name where no file or folder has it.

    >>> is_benchmark("tasks/sums.yaml"), is_benchmark("hellaswag"), is_benchmark("rows.jsonl"), is_benchmark("org/set")
    (True, True, False, False)
    """
    place = Path(path).expanduser()
    is_bare = not place.suffix and len(place.parts) == 1 and path != "~"
    return task_file(path) is not None or (is_bare and not place.exists())


class BenchmarkTask:
    """All that was asked for under one name; its questions are the harness's, and so is the prompt of each."""

    def __init__(self, section: TaskSection, num_fewshot: int | None = None) -> None:
        """Find the benchmark and load its data.

        Raises:
            ArgumentError: if lm-eval is not installed or knows no such task.
            DataError: if its data cannot be reached.
        """
        self.name = section.name or Path(section.path).stem
        group = group_in(section.path)
        request = HarnessRequest((section.path,), num_fewshot, section.limit)
        if group is not None:
            request = replace(request, tasks=(group,), folders=(Path(section.path).expanduser().parent,))
        self._tasks = load_harness(request)
        self._settings = [section.path, num_fewshot, section.limit]

    @property
    def num_steps(self) -> int:
        """Questions, and of multiple choice every answer to choose from."""
        return self._tasks.num_requests

    def check(self, subject: Subject) -> None:
        """The harness cuts what is too long, from the left."""

    def run(self, subject: Subject, work: Work) -> TaskScores:
        """Figures and answers, computed as a whole or taken up as a whole."""
        key = key_of("benchmark", subject.key, *self._settings)
        value = work.kept.get(key)
        if value is None:
            bar = _Bar(self.num_steps, work.on_done)
            tuned = subject.tuned
            found = run_harness(self._tasks, tuned.model, tuned.tokenizer, work.batch_size, bar.advance)
            value = _stored(found)
            work.kept.add([key], [value])
            bar.finish()
        else:
            work.on_done(self.num_steps)
        return _scores(value)


class _Bar:
    """Counts up to what was announced: some benchmarks ask for more."""

    def __init__(self, num_steps: int, on_done: Callable[[int], None]) -> None:
        self._left, self._on_done = num_steps, on_done

    def advance(self, count: int) -> None:
        """So many requests were answered."""
        count = min(count, self._left)
        self._left -= count
        self._on_done(count)

    def finish(self) -> None:
        """All were."""
        self.advance(self._left)


def _stored(found: HarnessResult) -> Value:
    """What is kept: the measures that were asked for, on the questions of the first that has any."""
    asked = [measure for measure in found.measures if not measure.is_part]
    questions = next((list(measure.question_ids) for measure in asked if measure.question_ids), [])
    answers = {answer.question_id: answer for answer in found.answers}
    return {
        "questions": questions,
        "measures": [_entry(measure, questions) for measure in asked],
        "rows": [{"prompt": answers[one].prompt, "reference": answers[one].reference} for one in questions],
        "answers": [answers[one].answer for one in questions],
    }


def _entry(measure: HarnessMeasure, questions: list[str]) -> Value:
    shots = "" if measure.num_fewshot is None else f", {measure.num_fewshot} examples before each question"
    return {
        "name": measure.name,
        "value": measure.value,
        "values": list(measure.values) if list(measure.question_ids) == questions else [],
        "count": measure.num_questions,
        "higher_is_better": measure.higher_is_better,
        "rule": f"by lm-evaluation-harness: {measure.name}{shots}",
    }


def _scores(value: Value) -> TaskScores:
    measures = {}
    for entry in value["measures"]:
        has_values = bool(entry["values"])
        measures[entry["name"]] = Measured(
            entry["values"] or [entry["value"]] * (len(value["questions"]) or entry["count"]),
            entry["higher_is_better"],
            "share" if all(0 <= one <= 1 for one in entry["values"] or [entry["value"]]) else "score",
            "questions",
            rule=entry["rule"],
            total=None if has_values else entry["value"],
            is_judged=has_values,
        )
    answers = [AnswerText(text, text, "end") for text in value["answers"]]
    return TaskScores(value["questions"], measures, answers=answers, rows=value["rows"])
