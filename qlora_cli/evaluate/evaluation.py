"""All models on all tasks, question by question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from peft import PeftModel

from qlora_cli import console
from qlora_cli.errors import StoppedBySignal
from qlora_cli.evaluate.contest import Contest, Entrant, visit
from qlora_cli.evaluate.judged_answers import Judge, add_judgements
from qlora_cli.evaluate.kept import Kept
from qlora_cli.evaluate.results import results_of
from qlora_cli.evaluate.scores import TaskScores
from qlora_cli.evaluate.table import tables
from qlora_cli.evaluate.tasks.task import Subject, Task
from qlora_cli.evaluate.work import Work
from qlora_cli.interruption import Interruption
from qlora_cli.model.adapter_health import adapter_health
from qlora_cli.progress import progress
from qlora_cli.run.adapter_health import AdapterHealth
from qlora_cli.run.eval_results import EvalResults


@dataclass(frozen=True)
class Outcome:
    """What every model got on every task."""

    contest: Contest
    scores: dict[str, dict[str, TaskScores]]
    """Task -> model -> scores."""

    results: EvalResults
    health: AdapterHealth | None = None
    """Of the first model's adapter, where it has one."""

    def __repr__(self) -> str:
        """The tables; all rows and answers would fill a notebook."""
        return "\n\n".join(table.as_text() for table in tables(self.results))

    def as_dict(self) -> dict[str, Any]:
        """What `results.json` holds."""
        return self.results.as_dict()


def evaluate(
    contest: Contest, tasks: Sequence[Task], batch_size: int, kept: Kept | None = None, judge: Judge | None = None
) -> Outcome:
    """Put every task to every model.

    Args:
        contest: the models.
        tasks: what they are asked.
        batch_size: rows or questions in a batch.
        kept: results that are known already; new ones are added.
        judge: says which of two answers is better; nobody when None.

    Raises:
        QloraError: if a model cannot be asked a question, before that model computes anything.
        StoppedBySignal: where results are kept for the next time.
    """
    kept = Kept() if kept is None else kept  # one without results is false
    scores: dict[str, dict[str, TaskScores]] = {task.name: {} for task in tasks}
    fingerprints: set[str] = set()
    health: list[AdapterHealth] = []
    if kept.num_found:
        console.note(f"{kept.num_found:,} results of an evaluation that was stopped are taken up")

    with _stoppable(kept), progress("evaluating", None) as phase:

        def look(subject: Subject, entrant: Entrant) -> None:
            if fingerprints and subject.renderer.fingerprint not in fingerprints:
                console.note(f"{entrant.name} has another tokenizer or template: it is asked the questions in its own")
            fingerprints.add(subject.renderer.fingerprint)
            for task in tasks:
                task.check(subject)
            phase.total = len(contest.entrants) * sum(task.num_steps for task in tasks)
            for task in tasks:
                phase.update(phase.done, f"{entrant.name}: {task.name}")
                scores[task.name][entrant.name] = task.run(subject, Work(batch_size, kept, phase.advance))
            if entrant.role == "tuned" and isinstance(subject.tuned.model, PeftModel) and not health:
                health.append(adapter_health(subject.tuned.model, starts_at_zero=entrant.source.starts_at_zero))

        models = visit(contest, look)
    if judge is not None:
        add_judgements(judge, contest.pairs, scores)
    results = results_of(models, contest.pairs, scores)
    return Outcome(contest, scores, results, health[0] if health else None)


@contextmanager
def _stoppable(kept: Kept) -> Iterator[None]:
    """After a stop signal, say what is kept."""
    try:
        yield
    except Interruption as stop:
        if not kept.is_stored or not len(kept):
            raise
        raise StoppedBySignal(
            f"stopped by {stop}; {len(kept):,} results are kept",
            signal_number=stop.signal_number,
            hint="the same command continues there",
        ) from None
