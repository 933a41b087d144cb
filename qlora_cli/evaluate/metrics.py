"""Scores of an answer against its reference: each metric gives 0 to 1, and a task reports the mean."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal

from qlora_cli.errors import ArgumentError

Metric = Callable[[str, str], float]
"""(answer, reference) -> score."""

# A sign counts only where no word or number comes before it: "5-3" ends in 3, "= -3" in -3.
_NUMBER = re.compile(r"(?<![\w.])-?\$?\d[\d,]*(?:\.\d+)?|\d[\d,]*(?:\.\d+)?|(?<!\d)\.\d+")


def exact_match(answer: str, reference: str) -> float:
    """1 if both are the same text after runs of white space are folded into one space and the ends stripped.

    Case and punctuation count.

    >>> exact_match(" team: sales\\n", "team:  sales"), exact_match("Team: sales", "team: sales")
    (1.0, 0.0)
    """
    return float(answer.split() == reference.split())


def contains(answer: str, reference: str) -> float:
    """1 if the reference is somewhere in the answer, white space folded and case ignored.

    >>> contains("The capital is Paris.", "paris"), contains("It is Rome.", "Paris")
    (1.0, 0.0)
    """
    return float(_folded(reference) in _folded(answer))


def number_match(answer: str, reference: str) -> float:
    """1 if the last number of the answer equals the last number of the reference.

    The usual score of GSM8K (Cobbe et al. 2021, arXiv:2110.14168), whose references end in `#### 42`. Commas
    between digits and currency signs do not count, and 3.0 is 3. An answer without a number scores 0.

    >>> number_match("That makes $1,250.00.", "#### 1250"), number_match("6 x 7 = -42", "#### 42")
    (1.0, 0.0)
    """
    expected = last_number(reference)
    return float(expected is not None and last_number(answer) == expected)


def last_number(text: str) -> Decimal | None:
    """The last number in the text, None where there is none.

    >>> last_number("5-3 leaves 2"), last_number("from 10 to -$1,000.50"), last_number("none")
    (Decimal('2'), Decimal('-1000.50'), None)
    """
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "").replace("$", "")) if found else None


def rouge_l(answer: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words, stemmed (Lin 2004), by the `rouge-score` package.

    Raises:
        ArgumentError: if the package is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError:
        raise ArgumentError(
            "the metric rouge_l needs the package rouge-score", hint="pip install rouge-score"
        ) from None
    return float(RougeScorer(["rougeL"], use_stemmer=True).score(reference, answer)["rougeL"].fmeasure)


METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "number_match": number_match,
    "contains": contains,
    "rouge_l": rouge_l,
}


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()
