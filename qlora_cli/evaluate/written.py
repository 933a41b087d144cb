"""Results of an evaluation on the disk: `results.json`, and for each generated task its answers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qlora_cli.errors import ArgumentError
from qlora_cli.evaluate.evaluation import Outcome
from qlora_cli.evaluate.scores import TaskScores
from qlora_cli.run.adapter_health import HEALTH_NAME, write_adapter_health
from qlora_cli.run.eval_results import LOSSES_NAME, PARTIAL_NAME, RESULTS_NAME, answers_name, eval_files
from qlora_cli.run.files import write_json, write_text
from qlora_cli.run.folders import replaced_folder
from qlora_cli.run.inventory import write_inventory

MOVE_RESULTS = "move it away, then measure again"


def refuse_foreign_results(folder: Path, tasks: Sequence[str]) -> None:
    """Refuse to replace results in `folder` that this project did not write, or that were changed since.

    Raises:
        ArgumentError: naming the first.
    """
    if folder.is_symlink():
        raise ArgumentError("is a link, and results are not written through it", place=str(folder), hint=MOVE_RESULTS)
    own = eval_files(folder) if folder.is_dir() else set()
    for name in (RESULTS_NAME, HEALTH_NAME, LOSSES_NAME, *map(answers_name, tasks)):
        if os.path.lexists(folder / name) and name not in own:
            raise ArgumentError(
                "was not written by qlora, or was changed since", place=str(folder / name), hint=MOVE_RESULTS
            )


def write_outcome(outcome: Outcome, folder: Path) -> None:
    """Write `results.json`, `losses.jsonl`, and for each task `answers-<task>.jsonl` with answers and references.

    They appear together, so that the results are always those of the answers, and what was kept on the way is gone
    with that; what else is in the folder stays.
    """
    with replaced_folder(folder, eval_files) as stage:
        for name in eval_files(folder) - {PARTIAL_NAME} if folder.is_dir() else ():
            shutil.copyfile(folder / name, stage / name)
        for task, by_model in outcome.scores.items():
            rows = [json.dumps(row, ensure_ascii=False) + "\n" for row in answer_rows(by_model)]
            if rows:
                write_text(stage / answers_name(task), "".join(rows), is_content=True)
        losses = [
            json.dumps(row) + "\n" for task, by_model in outcome.scores.items() for row in loss_rows(task, by_model)
        ]
        if losses:
            write_text(stage / LOSSES_NAME, "".join(losses))
        if outcome.health is not None:
            write_adapter_health(stage / HEALTH_NAME, outcome.health)
        write_json(stage / RESULTS_NAME, outcome.results.as_dict())
        write_inventory(stage)


def answer_rows(by_model: Mapping[str, TaskScores]) -> Iterator[dict[str, Any]]:
    """One row a question: prompt and reference, and by model its answer, how that ended, and its scores.

    `scored` is there where less than the whole answer was scored.
    """
    first = next(iter(by_model.values()))
    for index, row in enumerate(first.rows):
        answers = {model: scores.answers[index] for model, scores in by_model.items()}
        scored = {model: one.scored for model, one in answers.items() if one.scored != one.text}
        yield {
            **row,
            "answers": {model: one.text for model, one in answers.items()},
            **({"scored": scored} if scored else {}),
            "ended": {model: one.ended for model, one in answers.items()},
            "scores": {
                name: {model: scores.measures[name].values[index] for model, scores in by_model.items()}
                for name in first.measures
            },
        }


def loss_rows(task: str, by_model: Mapping[str, TaskScores]) -> Iterator[dict[str, Any]]:
    """One object a model and row: the loss summed over the row, in nats, and the tokens that it is of."""
    for model, scores in by_model.items():
        loss = scores.measures.get("loss")
        if loss is None or loss.weights is None:
            continue
        for row_id, nats, tokens in zip(scores.row_ids, loss.values, loss.weights, strict=True):
            yield {"task": task, "model": model, "row": row_id, "tokens": round(tokens), "nats": nats}
