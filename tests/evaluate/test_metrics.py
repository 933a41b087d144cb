import sys

import pytest

from qlora_cli.errors import ArgumentError
from qlora_cli.evaluate.metrics import contains, exact_match, number_match, rouge_l


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [("a b", "a b", 1), (" a\n b ", "a b", 1), ("A b", "a b", 0), ("a b.", "a b", 0), ("ab", "a b", 0), ("", "a", 0)],
)
def test_exact_match_folds_white_space_only(answer, reference, score):
    assert exact_match(answer, reference) == score


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("She has 18 left.\n#### 18", "16 - 3 = 13\n#### 18", 1),
        ("It costs $1,250.00.", "#### 1250", 1),
        ("3.50", "#### 3.5", 1),
        ("the result is -7", "#### -7", 1),
        ("the result is 7", "#### -7", 0),
        ("a fall of -$40", "#### -40", 1),
        ("9-4", "#### 4", 1),
        ("18 apples, then 19", "#### 18", 0),
        ("eighteen", "#### 18", 0),
        ("none", "none", 0),
        ("€.5", "#### 0.5", 1),
    ],
)
def test_number_match_compares_the_last_numbers(answer, reference, score):
    assert number_match(answer, reference) == score


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [("It is PARIS,  France.", "paris, france", 1), ("Rome", "Paris", 0), ("Pa ris", "Paris", 0)],
)
def test_contains_ignores_case_and_runs_of_white_space(answer, reference, score):
    assert contains(answer, reference) == score


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence():
    # Lin 2004, section 3: "police killed the gunman" / "police kill the gunman"; unstemmed 3 of 4 words, stemmed all.
    assert rouge_l("police kill the gunman", "police killed the gunman") == pytest.approx(1.0)
    assert rouge_l("the gunman kill police", "police killed the gunman") == pytest.approx(0.5)


def test_rouge_l_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(ArgumentError, match=r"pip install rouge-score"):
        rouge_l("a", "a")
