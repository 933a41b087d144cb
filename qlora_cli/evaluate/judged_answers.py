"""What a judge says of the answers of all models, as one more measure of each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qlora_cli import console
from qlora_cli.chat_server import ChatClient
from qlora_cli.evaluate.judge import JudgedPair, judge_answers
from qlora_cli.evaluate.kept import Kept
from qlora_cli.evaluate.scores import Measured, TaskScores
from qlora_cli.progress import progress

MEASURE = "judge"


@dataclass(frozen=True)
class Judge:
    """Who judges, and the judgements so far."""

    client: ChatClient
    kept: Kept


def add_judgements(
    judge: Judge, pairs: Sequence[tuple[str, str]], scores: Mapping[str, Mapping[str, TaskScores]]
) -> None:
    """Add the measure `judge` to every task with generated answers: 1 for an answer that wins, -1 for one that loses.

    Args:
        judge: a model behind a URL.
        pairs: a model, and what it is compared with, which has 0 everywhere.
        scores: of every model on every task; their measures are added to.

    Raises:
        QloraError: as `judge_answers`; what was judged until then is kept.
    """
    for task, by_model in scores.items():
        for model, against in pairs:
            after, before = by_model[model], by_model[against]
            if not after.max_new_tokens or after.questions != before.questions:
                continue
            asked = [
                JudgedPair(row["prompt"], first.scored or "", second.scored or "", row["reference"])
                for row, first, second in zip(after.rows, before.answers, after.answers, strict=True)
            ]
            with progress(f"judging {task}: {model} beside {against}", len(asked)) as phase:
                judged = judge_answers(asked, judge.client, judge.kept, on_judged=phase.advance)
            console.note(f"{task}: {judged.line}")
            outcomes = [float(judgement.outcome) for judgement in judged.judgements]
            measured = Measured(outcomes, True, "score", "questions", rule=judged.line)
            after.measures[MEASURE] = measured
            before.measures.setdefault(MEASURE, replace(measured, values=[0.0] * len(outcomes)))
