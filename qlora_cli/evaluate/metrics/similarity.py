"""Overlap of an answer with its reference, by the packages that papers report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from qlora_cli.errors import ArgumentError


def rouge_l(answer: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words, stemmed (Lin 2004), by the `rouge-score` package.

    Raises:
        ArgumentError: if the package is not installed.
    """
    return float(_rouge().score(reference, answer)["rougeL"].fmeasure)


@cache
def _rouge() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError:
        raise ArgumentError(
            "the metric rouge_l needs the package rouge-score", hint="pip install rouge-score"
        ) from None
    return RougeScorer(["rougeL"], use_stemmer=True)


@cache
def _sacrebleu(metric: str, *, effective_order: bool = False) -> Any:
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ModuleNotFoundError:
        raise ArgumentError(f"the metric {metric} needs the package sacrebleu", hint="pip install sacrebleu") from None
    return BLEU(effective_order=effective_order) if metric == "bleu" else CHRF()


def bleu(answer: str, reference: str) -> float:
    """BLEU of one sentence, 0 to 100, over the n-gram orders that it is long enough for.

    Raises:
        ArgumentError: if the package is not installed.
    """
    return float(_sacrebleu("bleu", effective_order=True).sentence_score(answer, [reference]).score)


def corpus_bleu(answers: Sequence[str], references: Sequence[str]) -> float:
    """BLEU of all answers together (Papineni et al. 2002; sacrebleu's defaults: 13a tokens, Post 2018)."""
    return float(_sacrebleu("bleu").corpus_score(list(answers), [list(references)]).score)


def chrf(answer: str, reference: str) -> float:
    """chrF2 of one sentence, 0 to 100.

    Raises:
        ArgumentError: if the package is not installed.
    """
    return float(_sacrebleu("chrf").sentence_score(answer, [reference]).score)


def corpus_chrf(answers: Sequence[str], references: Sequence[str]) -> float:
    """chrF2 of all answers together (Popović 2015; sacrebleu's defaults)."""
    return float(_sacrebleu("chrf").corpus_score(list(answers), [list(references)]).score)
