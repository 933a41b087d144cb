"""What lm-evaluation-harness reports, taken apart into measures and answers, question by question."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

SAME_MEAN = 1e-9
"""A figure counts as the mean over questions where it is that close to it."""

NO_FILTER = "none"


@dataclass(frozen=True)
class HarnessMeasure:
    """One metric of one task or group."""

    task: str
    metric: str
    filter: str
    """Of the answers before they are scored; `none` where there is none."""

    value: float
    """As lm-eval reports it."""

    higher_is_better: bool
    num_fewshot: int | None
    num_questions: int
    is_part: bool
    """Of a task inside of a group that was asked for; the group's figure is the one that was asked for."""

    question_ids: tuple[str, ...] = ()
    values: tuple[float, ...] = ()
    """Of each question, whose mean `value` is; empty where it is no mean over questions, such as a perplexity."""

    @property
    def name(self) -> str:
        """Metric, with the filter where there is one.

        >>> HarnessMeasure("gsm8k", "exact_match", "strict-match", 0.5, True, 5, 2, False).name
        'exact_match (strict-match)'
        """
        return metric_name(self.metric, self.filter)


@dataclass(frozen=True)
class HarnessAnswer:
    """What a model answered to one question."""

    task: str
    question_id: str
    prompt: str
    reference: str
    answer: str
    scores: Mapping[str, float]
    """By `HarnessMeasure.name`."""


@dataclass(frozen=True)
class HarnessResult:
    """Figures and answers of one model."""

    measures: list[HarnessMeasure]
    answers: list[HarnessAnswer]


def metric_name(metric: str, filter_name: str) -> str:
    """A metric with the filter of its answers, for people."""
    return metric if filter_name == NO_FILTER else f"{metric} ({filter_name})"


def read_harness(asked: Sequence[str], found: Mapping[str, Any]) -> HarnessResult:
    """Measures and answers from what `lm_eval.evaluate` returns.

    Args:
        asked: tasks and groups whose figures were asked for.
        found: with samples.
    """
    parts = found.get("group_subtasks", {})
    measures = [
        measure
        for task in (*found.get("groups", {}), *found["results"])
        for measure in _measures_of(task, found, _leaves(task, parts), is_part=task not in asked)
    ]
    unique = {(measure.task, measure.name): measure for measure in measures}
    return HarnessResult(list(unique.values()), list(_answers(found)))


def _leaves(task: str, parts: Mapping[str, Sequence[str]]) -> list[str]:
    """The tasks below a group, in order; a task is its own.

    >>> _leaves("mmlu", {"mmlu": ["stem", "law"], "stem": ["physics", "biology"]})
    ['physics', 'biology', 'law']
    """
    if task not in parts:
        return [task]
    return [leaf for part in parts[task] for leaf in _leaves(part, parts)]


def _measures_of(task: str, found: Mapping[str, Any], leaves: list[str], *, is_part: bool) -> Iterator[HarnessMeasure]:
    figures = {**found["results"].get(task, {}), **found.get("groups", {}).get(task, {})}
    for key, value in figures.items():
        metric, _, filter_name = key.partition(",")
        if not filter_name or metric.endswith("stderr") or not isinstance(value, int | float):
            continue
        samples = [
            (f"{leaf} {sample['doc_id']}", sample)
            for leaf in leaves
            for sample in found["samples"].get(leaf, ())
            if sample["filter"] == filter_name
        ]
        values = _values(samples, metric, float(value))
        yield HarnessMeasure(
            task,
            metric,
            filter_name,
            float(value),
            higher_is_better=found["higher_is_better"].get(task, {}).get(metric) is not False,
            num_fewshot=found["n-shot"].get(task),
            num_questions=len(samples),
            is_part=is_part,
            question_ids=tuple(question for question, _ in samples) if values else (),
            values=values,
        )


def _values(samples: Sequence[tuple[str, Mapping[str, Any]]], metric: str, mean: float) -> tuple[float, ...]:
    """The metric of each question, where its mean is the figure that was reported; else nothing."""
    values = [sample.get(metric) for _, sample in samples]
    numbers = [float(value) for value in values if isinstance(value, int | float | bool) and math.isfinite(value)]
    if not numbers or len(numbers) != len(values) or abs(fmean(numbers) - mean) > SAME_MEAN:
        return ()
    return tuple(numbers)


def _answers(found: Mapping[str, Any]) -> Iterator[HarnessAnswer]:
    """One a question; scores of all filters together, and the answer as the last filter left it."""
    for task, samples in found["samples"].items():
        by_question: dict[int, list[Mapping[str, Any]]] = {}
        for sample in samples:
            by_question.setdefault(sample["doc_id"], []).append(sample)
        for question, filtered in sorted(by_question.items()):
            last = filtered[-1]
            yield HarnessAnswer(
                task,
                f"{task} {question}",
                prompt=str(last["arguments"][0][0]),
                reference=_reference(last),
                answer=_answer(last),
                scores={
                    metric_name(metric, sample["filter"]): float(sample[metric])
                    for sample in filtered
                    for metric in sample["metrics"]
                    if isinstance(sample[metric], int | float | bool)
                },
            )


def has_right_choice(sample: Mapping[str, Any]) -> bool:
    """Whether one of a question's choices is right, by its number or its text; true of questions without choices.

    A misspelled column is taken for the target's text by lm-eval, which then scores every answer as wrong.

    >>> choices = [("2 + 2 =", " 3"), ("2 + 2 =", " 4")]
    >>> [has_right_choice({"target": target, "arguments": choices}) for target in (1, "4", "0", "lable")]
    [True, True, True, False]
    """
    choices, target = _choices(sample), sample["target"]
    if not choices:
        return True
    targets = target if isinstance(target, list) else [target]
    texts = {choice.strip() for choice in choices}
    return any(
        one.strip() in texts or one.strip().isdigit() if isinstance(one, str) else 0 <= one < len(choices)
        for one in targets
    )


def _choices(sample: Mapping[str, Any]) -> list[str]:
    """The answers whose likelihood was asked for; empty for generated text."""
    arguments = sample["arguments"]
    return [str(one[1]) for one in arguments] if len(arguments) > 1 else []


def _reference(sample: Mapping[str, Any]) -> str:
    """The right answer; of choices, its text.

    >>> _reference({"target": 1, "arguments": [("2 + 2 =", " 3"), ("2 + 2 =", " 4")]})
    ' 4'
    """
    target, choices = sample["target"], _choices(sample)
    return choices[target] if isinstance(target, int) and 0 <= target < len(choices) else str(target)


def _answer(sample: Mapping[str, Any]) -> str:
    """The text that was generated, as it was filtered; of choices, the likeliest."""
    responses, choices = sample["filtered_resps"], _choices(sample)
    if not choices:
        return str(responses[0])
    return choices[max(range(len(choices)), key=lambda index: responses[index][0])]
