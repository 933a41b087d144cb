"""Tasks of a recipe or of the command line, read from their files."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

from qlora_cli.choices import TaskKind
from qlora_cli.data.problems import RowProblems
from qlora_cli.data.read.column_mapping import Where
from qlora_cli.data.read.examples import read_examples
from qlora_cli.data.read.sources import read_rows
from qlora_cli.errors import ArgumentError, DataError
from qlora_cli.evaluate.metrics.table import metrics_of
from qlora_cli.evaluate.tasks.benchmark import BenchmarkTask, is_benchmark
from qlora_cli.evaluate.tasks.choice_rows import has_choices, to_choice_row
from qlora_cli.evaluate.tasks.generation import GenerationTask
from qlora_cli.evaluate.tasks.multiple_choice import MultipleChoiceTask
from qlora_cli.evaluate.tasks.task import Task
from qlora_cli.recipe.data_schema import SourceSection
from qlora_cli.recipe.eval_schema import TaskSection


def load_task(section: TaskSection, where: Where = "tasks", num_fewshot: int | None = None) -> Task:
    """The task that a section describes.

    Args:
        section: of the recipe, or made of a command's options.
        where: what a hint on its columns is to be written under.
        num_fewshot: examples before each question of a benchmark; what it says itself when None.

    Raises:
        ArgumentError: if a benchmark is not known, or is given what only a file can have.
        DataError: if the file cannot be read, or its rows are no questions.
    """
    if is_benchmark(section.path):
        return _benchmark(section, num_fewshot)
    return KINDS[section.kind or _kind_of(section)](section, where)


def task_name(section: TaskSection) -> str:
    """Name in tables and of files."""
    return section.name or Path(section.path).stem


def _kind_of(section: TaskSection) -> TaskKind:
    """Multiple choice where the first row has a question, choices and an answer."""
    if section.format is not None:
        return "generation"
    try:
        rows = read_rows(SourceSection(path=section.path))
        first = next(iter(islice(rows, 1)), None)
    except DataError:
        return "generation"  # reading all of it says what is wrong
    return "multiple_choice" if first is not None and has_choices(first[1], section.columns) else "generation"


def _benchmark(section: TaskSection, num_fewshot: int | None) -> Task:
    for key in ("metrics", "columns", "format", "kind", "json_schema", "ignore"):
        if getattr(section, key) != getattr(TaskSection(path=section.path), key):
            raise ArgumentError(
                f"'{key}' is not for a benchmark, which has its own",
                place=section.path,
                hint=f"take `{key}` out; a file of rows has its ending in its name, as rows.jsonl",
            )
    return BenchmarkTask(section, num_fewshot)


def _generation(section: TaskSection, where: Where) -> GenerationTask:
    source = SourceSection(path=section.path, format=section.format, columns=section.columns)
    examples = read_examples(source, section.limit, where=where)
    return GenerationTask(task_name(section), examples, metrics_of(section), section.max_new_tokens)


def _multiple_choice(section: TaskSection, where: Where) -> MultipleChoiceTask:
    if section.format is not None:
        raise ArgumentError(
            f"'format: {section.format}' has no choices",
            place=section.path,
            hint="take `format` out; `columns: {question: ..., choices: ..., answer: ...}` names columns",
        )
    problems = RowProblems()
    rows = []
    for place, row in islice(read_rows(SourceSection(path=section.path)), section.limit):
        try:
            rows.append(to_choice_row(row, place, section.columns))
        except DataError as error:
            problems.add_error(error)
    problems.raise_if_any()
    return MultipleChoiceTask(task_name(section), rows)


KINDS: dict[TaskKind, Callable[[TaskSection, Where], Task]] = {
    "generation": _generation,
    "multiple_choice": _multiple_choice,
}
