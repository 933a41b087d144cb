"""`qlora eval` from its options to a result: the run's own held-out rows and tasks, or those that were named."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from qlora_cli.calling import check_range
from qlora_cli.chat_server import ChatClient, ChatServer
from qlora_cli.choices import MetricName
from qlora_cli.data.answer_rows import rows_per_answer
from qlora_cli.data.prepare import prepare_data
from qlora_cli.data.read.column_mapping import Where
from qlora_cli.data.read.examples import read_examples
from qlora_cli.data.render.for_data import data_renderer
from qlora_cli.data.render.renderer import Renderer, TokenRow
from qlora_cli.errors import ArgumentError, DataError
from qlora_cli.evaluate.contest import arrange
from qlora_cli.evaluate.evaluation import Outcome, evaluate
from qlora_cli.evaluate.judged_answers import Judge
from qlora_cli.evaluate.kept import kept_in
from qlora_cli.evaluate.run_columns import parse_columns, read_like_the_run
from qlora_cli.evaluate.tasks.benchmark import BenchmarkTask, is_benchmark
from qlora_cli.evaluate.tasks.general_text import general_text_task
from qlora_cli.evaluate.tasks.generation import GenerationTask
from qlora_cli.evaluate.tasks.held_out import LossTask
from qlora_cli.evaluate.tasks.load import load_task
from qlora_cli.evaluate.tasks.task import Task
from qlora_cli.evaluate.written import refuse_foreign_results, write_outcome
from qlora_cli.model.tuned import TunedSource
from qlora_cli.recipe.data_schema import SourceSection
from qlora_cli.recipe.eval_schema import EvalSection, TaskSection
from qlora_cli.run.claim import refuse_links
from qlora_cli.run.eval_results import GENERAL_TEXT, HELD_OUT, JUDGEMENTS_NAME
from qlora_cli.run.manifest import recorded_date

DEFAULT_BATCH_SIZE = 8


@dataclass(frozen=True)
class EvalRequest:
    """Options of the command; None stands for what the run's recipe says."""

    data: Path | None = None
    """Held-out rows for loss and perplexity."""

    tasks: tuple[TaskSection, ...] = ()
    """Instead of the recipe's tasks."""

    batch_size: int | None = None
    max_new_tokens: int | None = None
    limit: int | None = None
    """Use only the first `limit` questions of each task."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Format field -> column of `data`; where it is empty, as the run's own rows were read."""

    general_text: str | None = None
    num_fewshot: int | None = None
    """Examples before each question of a benchmark; what it says itself when None."""

    judge: ChatServer | None = None


def request_of(
    data: str | os.PathLike[str] | None,
    tasks: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    metrics: str | Sequence[str],
    columns: Mapping[str, str] | Sequence[str],
    general_text: str | os.PathLike[str] | None,
    numbers: Mapping[str, int | None],
    judge: tuple[str, str] | None,
) -> EvalRequest:
    """What is measured, as `qlora_cli.evaluate` takes it.

    Args:
        data, tasks, metrics, columns, general_text, judge: as there.
        numbers: those fields of the request that are one.

    Raises:
        ArgumentError: for options that do not go together, and numbers out of range.
    """
    for name, value in numbers.items():
        check_range(name, value, 0 if name == "num_fewshot" else 1)
    files = [tasks] if isinstance(tasks, str | os.PathLike) else tasks
    names = [metrics] if isinstance(metrics, str) else metrics
    named = dict(columns) if isinstance(columns, Mapping) else parse_columns(columns)
    if named and data is None and not files:
        raise ArgumentError("--columns needs a file to read", hint="add --data FILE or --task FILE")
    sections = task_sections([Path(file) for file in files], names, named)
    rows = None if data is None else Path(data)
    text = None if general_text is None else os.fspath(general_text)
    server = ChatServer(*judge) if judge else None
    return EvalRequest(rows, sections, columns=named, general_text=text, judge=server, **numbers)


def task_sections(
    files: Sequence[Path], metrics: Sequence[str], columns: Mapping[str, str] | None = None
) -> tuple[TaskSection, ...]:
    """The command's tasks as a recipe would state them; every metric and the columns go with every file.

    Raises:
        ArgumentError: for an unknown metric, or metrics without a file to score.
    """
    for metric in metrics:
        if metric not in get_args(MetricName):
            known = ", ".join(get_args(MetricName))
            raise ArgumentError(f"unknown metric '{metric}'", hint=f"the metrics are {known}")
    if metrics and not files:
        raise ArgumentError("--metric needs a --task", hint="add --task FILE")
    chosen = {"metrics": tuple(metrics)} if metrics else {}
    named = {"columns": dict(columns or {})}
    return tuple(TaskSection.model_validate({"path": str(file), **named, **chosen}) for file in files)


def measure(sources: Sequence[TunedSource], request: EvalRequest, against: TunedSource | None = None) -> Outcome:
    """Measure the models, and write down the results beside the first one.

    The results go to `<run>/eval/`, or `<folder>/eval/` for an adapter made elsewhere.

    Args:
        sources: the models; the recipe of the first one says what is measured where `request` does not.
        request: options.
        against: what each is compared with; its own base where that is None.
    """
    first = sources[0]
    if first.run is not None:
        refuse_links(first.run)
    tasks, batch_size = prepare_tasks(first, request)
    folder = first.run.eval_path if first.run else first.folder / "eval"
    refuse_foreign_results(folder, [task.name for task in tasks])
    client = ChatClient(request.judge) if request.judge else None
    with ExitStack() as stack:
        kept = stack.enter_context(kept_in(folder))
        judge = None if client is None else Judge(client, stack.enter_context(kept_in(folder, JUDGEMENTS_NAME)))
        outcome = evaluate(arrange(sources, against), tasks, batch_size, kept, judge)
        write_outcome(outcome, folder)
    return outcome


def prepare_tasks(source: TunedSource, request: EvalRequest) -> tuple[list[Task], int]:
    """Everything that is to be measured, with questions read but not yet rendered; and the batch size.

    Raises:
        ArgumentError: if there is nothing to measure on.
        DataError: if a file cannot be read.
    """
    recipe = source.recipe
    section = recipe.eval if recipe else EvalSection()
    where: Where = "option" if request.tasks else "tasks"
    sections = section.tasks
    if request.tasks:
        sections = tuple(one if is_benchmark(one.path) else read_like_the_run(one, recipe) for one in request.tasks)
    changes = {"max_new_tokens": request.max_new_tokens, "limit": request.limit}
    given = {name: value for name, value in changes.items() if value is not None}
    with _hinting("--task FILE" if not request.tasks else ""):
        asked = [load_task(one.model_copy(update=given), where, request.num_fewshot) for one in sections]
    rows = _held_out_rows(source, request)
    if rows is None and not asked:
        raise ArgumentError(
            f"there is nothing to measure '{source.folder}' on",
            hint="name held-out rows with --data FILE, or a task with --task FILE",
        )
    _refuse_reserved(asked)
    _refuse_unread(request, asked)
    general = general_text_task(request.general_text or section.general_text)
    tasks: list[Task] = [LossTask(HELD_OUT, rows)] if rows is not None else []
    tasks += [*asked, *([general] if general is not None else [])]
    default = section.per_device_eval_batch_size if recipe else DEFAULT_BATCH_SIZE
    return tasks, request.batch_size or default


def _refuse_unread(request: EvalRequest, tasks: Sequence[Task]) -> None:
    """Refuse options that none of the tasks would read."""
    if request.num_fewshot is not None and not any(isinstance(task, BenchmarkTask) for task in tasks):
        raise ArgumentError("--num-fewshot is for benchmarks, and none is asked", hint="add --task NAME, as hellaswag")
    if request.judge is not None and not any(isinstance(task, GenerationTask) for task in tasks):
        raise ArgumentError(
            "--judge compares generated answers, and no task has any", hint="add --task FILE with prompts and answers"
        )


def _refuse_reserved(tasks: Sequence[Task]) -> None:
    seen = {HELD_OUT, GENERAL_TEXT}
    for task in tasks:
        if task.name in seen:
            raise ArgumentError(
                f"two tasks have the name '{task.name}'",
                hint="rename a file, or give it a `name:` in a recipe",
            )
        seen.add(task.name)


def _held_out_rows(source: TunedSource, request: EvalRequest) -> Callable[[Renderer], list[TokenRow]] | None:
    """Gives the rows in the tokens of a model; None where there are none."""
    recipe = source.recipe
    if request.data is not None:
        asked = SourceSection(path=str(request.data), columns=dict(request.columns))
        examples = read_examples(read_like_the_run(asked, recipe), where="option")
        if recipe is not None and recipe.data.row_per == "answer":
            examples = [row for example in examples for row in rows_per_answer(example)]
        place = str(request.data)

        def rendered(renderer: Renderer) -> list[TokenRow]:
            rows = renderer.render(examples)
            if not any(row.num_trained_tokens for row in rows):
                raise ArgumentError("no row holds an assistant's turn to measure the loss on", place=place)
            return rows

        return rendered
    if recipe is None or (recipe.data.eval is None and recipe.data.eval_fraction is None):
        return None
    date = recorded_date(source.run) if source.run else None
    data, seed = recipe.data, recipe.training.seed

    def prepared(renderer: Renderer) -> list[TokenRow]:
        own = data_renderer(renderer.tokenizer, data, date)
        with _hinting("--data FILE"):
            return list(prepare_data(data, own, seed).eval.all_documents())

    return prepared


@contextmanager
def _hinting(option: str) -> Iterator[None]:
    """Say, where the run's own data can no longer be read, that others can be named."""
    try:
        yield
    except DataError as error:
        first, *others = error.problems
        if not option:
            raise
        hint = f"{first.hint}; or name others with `{option}`".removeprefix("; or ")
        raise DataError([replace(first, hint=hint), *others]) from error
