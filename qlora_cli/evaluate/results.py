"""Figures with their intervals, and verdicts, out of the scores of single questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qlora_cli.evaluate.scores import Measured, TaskScores
from qlora_cli.run.eval_results import EvalResults, Figure, Measure, MeasuredModel, StoredVerdict, TaskSummary
from qlora_cli.verdict.paired import Paired, Verdict, interval, judge_pairs

Scores = Mapping[str, Mapping[str, TaskScores]]
"""Task -> model -> scores."""


def results_of(models: list[MeasuredModel], pairs: Sequence[tuple[str, str]], scores: Scores) -> EvalResults:
    """The results as they are stored.

    Args:
        models: all that were measured.
        pairs: a model, and what it is compared with.
        scores: of every model on every task.
    """
    measures = [measure for task, by_model in scores.items() for measure in _measures(task, by_model)]
    return EvalResults(models, measures, _verdicts(pairs, scores), [_summary(task, scores[task]) for task in scores])


def _measures(task: str, by_model: Mapping[str, TaskScores]) -> list[Measure]:
    first = next(iter(by_model.values()))
    files = list(dict.fromkeys(first.sources or ()))
    measures = []
    for name, example in first.measures.items():
        for source in (None, *(files if len(files) > 1 else ())):
            values = {
                model: _figure(_of_source(scores, name, source))
                for model, scores in by_model.items()
                if name in scores.measures and (source is None or source in (scores.sources or ()))
            }
            measures.append(
                Measure(
                    task,
                    name,
                    example.higher_is_better,
                    example.unit,
                    example.over,
                    source,
                    example.rule,
                    values,
                )
            )
    return measures


def _of_source(scores: TaskScores, name: str, source: str | None) -> Measured:
    measured = scores.measures[name]
    if source is None or scores.sources is None:
        return measured
    return measured.of([index for index, file in enumerate(scores.sources) if file == source])


def _figure(measured: Measured) -> Figure:
    if measured.total is not None:
        return Figure(measured.total, count=measured.count)
    low, high = interval(measured.values, measured.weights)
    return Figure(measured.figure(), measured.shown_as(low), measured.shown_as(high), measured.count)


@dataclass(frozen=True)
class _Asked:
    """One comparison."""

    task: str
    measure: str
    model: str
    against: str
    pair: Paired


def _verdicts(pairs: Sequence[tuple[str, str]], scores: Scores) -> list[StoredVerdict]:
    """A verdict on each measure that is judged, for each pair of models; all are asked together."""
    asked: dict[str, _Asked] = {}
    for task, by_model in scores.items():
        for model, against in pairs:
            for name in _judged(by_model[model], by_model[against]):
                pair = _paired(by_model[against], by_model[model], name)
                if pair is not None:
                    asked[str(len(asked))] = _Asked(task, name, model, against, pair)
    verdicts = judge_pairs({key: one.pair for key, one in asked.items()}) if asked else {}
    return [_stored(one, verdicts[key]) for key, one in asked.items()]


def _judged(after: TaskScores, before: TaskScores) -> list[str]:
    """Measures by which two models are compared.

    The loss for each token says nothing where two tokenizers cut the text into different tokens; bits for each byte do.
    """
    names = [name for name, measured in after.measures.items() if measured.is_judged and name in before.measures]
    if "loss" in names and "bits_per_byte" in after.measures:
        tokens = [sum(scores.measures["loss"].weights or ()) for scores in (before, after)]
        if tokens[0] != tokens[1]:
            return ["bits_per_byte" if name == "loss" else name for name in names]
    return names


def _paired(before: TaskScores, after: TaskScores, name: str) -> Paired | None:
    """Both models on the questions that both were asked, in the order of the first."""
    at = {question: index for index, question in enumerate(after.questions)}
    both = [(index, at[question]) for index, question in enumerate(before.questions) if question in at]
    if not both:
        return None
    one, other = before.measures[name], after.measures[name]
    weights = None if other.weights is None else [other.weights[index] for _, index in both]
    return Paired(
        [one.values[index] for index, _ in both],
        [other.values[index] for _, index in both],
        weights,
        higher_is_better=other.higher_is_better,
    )


def _stored(asked: _Asked, verdict: Verdict) -> StoredVerdict:
    return StoredVerdict(
        task=asked.task,
        measure=asked.measure,
        model=asked.model,
        against=asked.against,
        difference=verdict.difference,
        low=verdict.low,
        high=verdict.high,
        p_value=verdict.p_value,
        p_adjusted=verdict.p_adjusted,
        outcome=verdict.outcome,
        num_questions=verdict.num_questions,
        smallest_detectable=verdict.smallest_detectable,
        rows_for_half=verdict.rows_for_half,
        sentence=verdict.sentence,
    )


def _summary(task: str, by_model: Mapping[str, TaskScores]) -> TaskSummary:
    first = next(iter(by_model.values()))
    answers = {name: scores.answers for name, scores in by_model.items() if scores.answers}
    return TaskSummary(
        task,
        len(first.questions),
        {name: sum(one.ended != "end" for one in given) for name, given in answers.items()},
        {name: sum(one.is_empty for one in given) for name, given in answers.items()},
        list(first.measures),
        first.max_new_tokens,
    )
