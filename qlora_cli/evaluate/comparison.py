"""A tuned model beside its base: loss, perplexity and task scores, measured the same way on both."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftModel

from qlora_cli.data.collator import Collator
from qlora_cli.data.packing import unpacked
from qlora_cli.data.render.renderer import Renderer, TokenRow
from qlora_cli.errors import ArgumentError
from qlora_cli.evaluate.answers import AnswerOptions, generate_answers
from qlora_cli.evaluate.metrics import METRICS
from qlora_cli.evaluate.tasks import Task, score_answers
from qlora_cli.model.base import load_base
from qlora_cli.model.embedding_limits import check_length, check_tokens
from qlora_cli.model.eval_loss import Score, score_rows
from qlora_cli.model.tuned import Tuned
from qlora_cli.progress import Phase, progress
from qlora_cli.run.files import write_json, write_text
from qlora_cli.run.folders import replaced_folder
from qlora_cli.run.inventory import listed_files

MOVE_RESULTS = "move it away, then measure again"


@dataclass(frozen=True)
class Evaluation:
    """Data and tasks to measure on."""

    rows: list[TokenRow]
    """Held-out rows for loss and perplexity; empty to leave these out."""

    tasks: list[Task]
    batch_size: int = 8


@dataclass(frozen=True)
class Measure:
    """One figure for the base and for the tuned model."""

    name: str
    base: float | None
    """None where there is no adapter, and so no base to compare with."""

    tuned: float
    count: int
    """Tokens or questions that the figure is a mean over."""

    def shown(self, value: float | None) -> str:
        """`value` as tables show it: scores in percent, loss and perplexity as they are."""
        if value is None:
            return "-"
        return f"{value:.3f}" if self.name in ("loss", "perplexity") else f"{value:.1%}"


@dataclass(frozen=True)
class Measurement:
    """Results of one of the two models."""

    score: Score | None
    """None where there are no rows."""

    answers: list[list[str]]
    """For each task, the answer to each question."""


@dataclass(frozen=True)
class Comparison:
    """Everything that was measured."""

    evaluation: Evaluation
    base: Measurement | None
    """None where the model was loaded without an adapter."""

    tuned: Measurement

    def __repr__(self) -> str:
        """The table; all rows and answers would fill a notebook."""
        rows = [("measure", "base", "tuned", "over"), *self.table()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("   ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    @property
    def measures(self) -> list[Measure]:
        """Loss and perplexity, then every metric of every task."""
        measures: list[Measure] = []
        if self.tuned.score is not None:
            base, tuned = self.base and self.base.score, self.tuned.score
            measures = [
                Measure("loss", base.loss if base else None, tuned.loss, tuned.num_tokens),
                Measure("perplexity", base.perplexity if base else None, tuned.perplexity, tuned.num_tokens),
            ]
        for index, task in enumerate(self.evaluation.tasks):
            after = score_answers(self.tuned.answers[index], task)
            before = score_answers(self.base.answers[index], task) if self.base else {}
            measures += [
                Measure(f"{task.name} {metric}", before.get(metric), after[metric], len(task.questions))
                for metric in task.metrics
            ]
        return measures

    def table(self) -> list[tuple[str, str, str, str]]:
        """Each measure as text: name, base, tuned, and what it is a mean over."""
        return [(m.name, m.shown(m.base), m.shown(m.tuned), f"{m.count:,}") for m in self.measures]

    def as_dict(self) -> dict[str, Any]:
        """The measures as JSON; a perplexity beyond a float becomes null."""
        return {
            "measures": [
                {key: None if value == math.inf else value for key, value in asdict(measure).items()}
                for measure in self.measures
            ]
        }


def evaluate_run(tuned: Tuned, evaluation: Evaluation) -> Comparison:
    """Measure the tuned model and, with its adapter switched off, its base.

    Both are the same weights in memory, so the adapter is the only difference between them. After PiSSA the
    weights in memory are the residual, which is nobody's base: the original base is then loaded beside them.

    Args:
        tuned: as loaded; a model without an adapter is measured alone.
        evaluation: rows and tasks.

    Raises:
        RecipeError: if the model has no embeddings or no positions for what it is to be measured on.
    """
    _check_reach(tuned, evaluation)
    base = None
    if tuned.source.is_base_apart:
        original = load_base(tuned.source.model, tuned.source.quantization).eval()
        base = _measure(replace(tuned, model=original), evaluation, "base")
        del original
    elif isinstance(tuned.model, PeftModel):
        with tuned.model.disable_adapter():
            base = _measure(tuned, evaluation, "base")
    return Comparison(evaluation, base, _measure(tuned, evaluation, "tuned"))


def _check_reach(tuned: Tuned, evaluation: Evaluation) -> None:
    name = tuned.source.model.base_model
    rows = [row.input_ids for row in evaluation.rows]
    prompts = [(question.prompt_ids, task.max_new_tokens) for task in evaluation.tasks for question in task.questions]
    texts = [*rows, *(prompt for prompt, _ in prompts)]
    check_tokens(tuned.model, tuned.tokenizer, name, lambda: max(max(ids) for ids in texts if ids))
    longest = max([len(row) for row in rows] + [len(ids) + num_new for ids, num_new in prompts])
    check_length(tuned.model, name, longest, remedy="shorten that row, or the answer to it by --max-new-tokens")


def refuse_foreign_results(folder: Path, evaluation: Evaluation) -> None:
    """Refuse to replace results in `folder` that this project did not write, or that were changed since.

    Raises:
        ArgumentError: naming the first.
    """
    if folder.is_symlink():
        raise ArgumentError("is a link, and results are not written through it", place=str(folder), hint=MOVE_RESULTS)
    own = listed_files(folder) if folder.is_dir() else set()
    for name in ("results.json", *(_answers_name(task) for task in evaluation.tasks)):
        if os.path.lexists(folder / name) and name not in own:
            raise ArgumentError(
                "was not written by qlora, or was changed since", place=str(folder / name), hint=MOVE_RESULTS
            )


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write `results.json`, and for each task `answers-<task>.jsonl` with every answer beside its reference.

    They appear together, so that the results are always those of the answers; what else is in the folder stays.
    """
    with replaced_folder(folder) as stage:
        for name in listed_files(folder) if folder.is_dir() else ():
            shutil.copyfile(folder / name, stage / name)
        for index, task in enumerate(comparison.evaluation.tasks):
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in _answer_rows(comparison, index)]
            write_text(stage / _answers_name(task), "".join(lines), is_content=True)
        write_json(stage / "results.json", comparison.as_dict())


def _answers_name(task: Task) -> str:
    return f"answers-{task.name}.jsonl"


def _measure(tuned: Tuned, evaluation: Evaluation, which: str) -> Measurement:
    end_of_turn_ids = Renderer(tuned.tokenizer).end_of_turn_ids
    score = _score(tuned, evaluation, which) if evaluation.rows else None
    answers = []
    for task in evaluation.tasks:
        options = AnswerOptions(end_of_turn_ids, task.max_new_tokens, evaluation.batch_size)
        prompts = [question.prompt_ids for question in task.questions]
        with progress(f"{which} model: answering {task.name}", len(prompts)) as phase:
            answers.append(generate_answers(tuned.model, tuned.tokenizer, prompts, options, phase.advance))
    return Measurement(score, answers)


def _score(tuned: Tuned, evaluation: Evaluation, which: str) -> Score:
    rows = [asdict(row) for row in unpacked(evaluation.rows)]
    with progress(f"{which} model: loss", len(rows)) as phase:
        return score_rows(tuned.model, _batches(tuned, rows, evaluation.batch_size, phase))


def _batches(tuned: Tuned, rows: list[dict[str, Any]], size: int, phase: Phase) -> Iterator[dict[str, Any]]:
    collator = Collator(tuned.tokenizer.pad_token_id)
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        yield collator(batch)
        phase.advance(len(batch))


def _answer_rows(comparison: Comparison, index: int) -> Iterator[dict[str, Any]]:
    """One row a question; `correct` is the tuned answer's score under each metric."""
    task = comparison.evaluation.tasks[index]
    base = comparison.base.answers[index] if comparison.base else [None] * len(task.questions)
    tuned = comparison.tuned.answers[index]
    for question, base_answer, tuned_answer in zip(task.questions, base, tuned, strict=True):
        yield {
            "prompt": question.prompt,
            "reference": question.reference,
            "base": base_answer,
            "tuned": tuned_answer,
            "correct": {name: METRICS[name](tuned_answer, question.reference) for name in task.metrics},
        }
