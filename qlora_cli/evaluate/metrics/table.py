"""Metrics by name, and those of a task."""

from __future__ import annotations

from dataclasses import replace

from qlora_cli.choices import MetricName
from qlora_cli.evaluate.metrics.metric import Metric
from qlora_cli.evaluate.metrics.numbers import number_fault, number_match
from qlora_cli.evaluate.metrics.similarity import bleu, chrf, corpus_bleu, corpus_chrf, rouge_l
from qlora_cli.evaluate.metrics.structure import is_json, json_valid
from qlora_cli.evaluate.metrics.text import (
    choice,
    choice_fault,
    contains,
    exact_match,
    normalized,
    regex,
    regex_fault,
)
from qlora_cli.recipe.eval_schema import TaskSection

METRICS: dict[MetricName, Metric] = {
    "exact_match": Metric(exact_match, "1 if answer and reference are the same text, runs of white space folded"),
    "number_match": Metric(
        number_match,
        "1 if the numbers are equal: the one behind the first ####, else the last",
        number_fault,
        reads_normalized=False,
    ),
    "contains": Metric(contains, "1 if the reference is in the answer, case ignored and white space folded"),
    "regex": Metric(
        regex,
        "1 if the reference, a regular expression, is found in the answer",
        regex_fault,
        reads_normalized=False,
    ),
    "choice": Metric(
        choice,
        "1 if both choose the same letter: behind 'answer is', else at the beginning, in brackets, or alone",
        choice_fault,
        reads_normalized=False,
    ),
    "json_valid": Metric(is_json, "1 if the whole answer is JSON", reads_normalized=False),
    "rouge_l": Metric(rouge_l, "F-measure of the longest common subsequence of stemmed words (rouge-score)"),
    "bleu": Metric(bleu, "BLEU by sacrebleu", unit="score", corpus=corpus_bleu),
    "chrf": Metric(chrf, "chrF2 by sacrebleu", unit="score", corpus=corpus_chrf),
}


def metrics_of(section: TaskSection) -> dict[str, Metric]:
    """The metrics of a task, with what it ignores taken out of answer and reference first.

    Raises:
        ArgumentError, DataError: as `json_valid`.
    """
    named: dict[str, Metric] = {}
    for name in section.metrics:
        metric = json_valid(section.json_schema) if name == "json_valid" else METRICS[name]
        named[name] = _ignoring(metric, section.ignore) if section.ignore and metric.reads_normalized else metric
    return named


def _ignoring(metric: Metric, ignored: tuple[str, ...]) -> Metric:
    def score(answer: str, reference: str) -> float:
        return metric.score(normalized(answer, ignored), normalized(reference, ignored))

    told = " and ".join(ignored).replace("_", " ")
    return replace(metric, score=score, rule=f"{metric.rule}; {told} ignored")
