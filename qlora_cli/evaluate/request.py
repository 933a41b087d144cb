"""`qlora eval` from its options to a result: the run's own held-out rows and tasks, or those that were named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from qlora_cli.data.answer_rows import rows_per_answer
from qlora_cli.data.prepare import prepare_data
from qlora_cli.data.read.column_mapping import Where
from qlora_cli.data.read.examples import read_examples
from qlora_cli.data.render.for_data import data_renderer
from qlora_cli.data.render.renderer import Renderer, TokenRow
from qlora_cli.errors import ArgumentError, DataError
from qlora_cli.evaluate.comparison import (
    Comparison,
    Evaluation,
    evaluate_run,
    refuse_foreign_results,
    write_comparison,
)
from qlora_cli.evaluate.metrics import METRICS
from qlora_cli.evaluate.run_columns import read_like_the_run
from qlora_cli.evaluate.tasks import load_task
from qlora_cli.model.tuned import Tuned, TunedSource, find_tuned, load_tuned
from qlora_cli.recipe.data_schema import SourceSection
from qlora_cli.recipe.eval_schema import TaskSection
from qlora_cli.run.claim import refuse_links
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


def task_sections(
    files: Sequence[Path], metrics: Sequence[str], columns: Mapping[str, str] | None = None
) -> tuple[TaskSection, ...]:
    """The command's tasks as a recipe would state them; every metric and the columns go with every file.

    Raises:
        ArgumentError: for an unknown metric, or metrics without a file to score.
    """
    for metric in metrics:
        if metric not in METRICS:
            raise ArgumentError(f"unknown metric '{metric}'", hint=f"the metrics are {', '.join(METRICS)}")
    if metrics and not files:
        raise ArgumentError("--metric needs a --task", hint="add --task FILE")
    chosen = {"metrics": tuple(metrics)} if metrics else {}
    named = {"columns": dict(columns or {})}
    return tuple(TaskSection.model_validate({"path": str(file), **named, **chosen}) for file in files)


def measure(folder: TunedSource | Path | None, request: EvalRequest) -> Comparison:
    """Load the model in `folder` (the latest run when None), measure it, and write down the results of a run.

    The results go to `<run>/eval/`, or `<folder>/eval/` for an adapter made elsewhere.
    """
    source = find_tuned(folder)
    if source.run is not None:
        refuse_links(source.run)
    tuned = load_tuned(source)
    evaluation = prepare_evaluation(tuned, request)
    results = tuned.source.run.eval_path if tuned.source.run else tuned.source.folder / "eval"
    refuse_foreign_results(results, evaluation)
    comparison = evaluate_run(tuned, evaluation)
    write_comparison(comparison, results)
    return comparison


def prepare_evaluation(tuned: Tuned, request: EvalRequest) -> Evaluation:
    """Read and render everything that is to be measured, before anything is computed.

    Raises:
        ArgumentError: if there is nothing to measure on.
        DataError: if a file cannot be read.
    """
    recipe, run = tuned.source.recipe, tuned.source.run
    date = recorded_date(run) if run else None  # the day that the run was trained on: its figures can be compared
    renderer = Renderer(tuned.tokenizer, date=date)
    where: Where = "option" if request.tasks else "tasks"
    sections = tuple(read_like_the_run(task, recipe) for task in request.tasks) or (recipe.eval.tasks if recipe else ())
    changes = {"max_new_tokens": request.max_new_tokens, "limit": request.limit}
    given = {name: value for name, value in changes.items() if value is not None}
    with _hinting("--task FILE" if not request.tasks else ""):
        tasks = [load_task(section.model_copy(update=given), renderer, where) for section in sections]
    rows = _held_out_rows(tuned, request, renderer)
    if not rows and not tasks:
        raise ArgumentError(
            f"there is nothing to measure '{tuned.source.folder}' on",
            hint="name held-out rows with --data FILE, or a task with --task FILE",
        )
    default = recipe.eval.per_device_eval_batch_size if recipe else DEFAULT_BATCH_SIZE
    return Evaluation(rows, tasks, request.batch_size or default)


def _held_out_rows(tuned: Tuned, request: EvalRequest, renderer: Renderer) -> list[TokenRow]:
    if request.data is not None:
        asked = SourceSection(path=str(request.data), columns=dict(request.columns))
        source = read_like_the_run(asked, tuned.source.recipe)
        examples = read_examples(source, where="option")
        if tuned.source.recipe is not None and tuned.source.recipe.data.row_per == "answer":
            examples = [row for example in examples for row in rows_per_answer(example)]
        rows = renderer.render(examples)
        if not any(row.num_trained_tokens for row in rows):
            raise ArgumentError("no row holds an assistant's turn to measure the loss on", place=str(request.data))
        return rows
    recipe = tuned.source.recipe
    if recipe is None or (recipe.data.eval is None and recipe.data.eval_fraction is None):
        return []
    date = recorded_date(tuned.source.run) if tuned.source.run else None
    renderer = data_renderer(tuned.tokenizer, recipe.data, date)
    with _hinting("--data FILE"):
        return list(prepare_data(recipe.data, renderer, recipe.training.seed).eval.all_documents())


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
