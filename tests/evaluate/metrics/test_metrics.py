import sys

import pytest

from qlora_cli.errors import ArgumentError, DataError
from qlora_cli.evaluate.metrics import similarity
from qlora_cli.evaluate.metrics.numbers import number_match
from qlora_cli.evaluate.metrics.similarity import rouge_l
from qlora_cli.evaluate.metrics.structure import json_valid
from qlora_cli.evaluate.metrics.table import metrics_of
from qlora_cli.evaluate.metrics.text import choice, contains, exact_match
from qlora_cli.recipe.eval_schema import TaskSection


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
        ("#### 42 is what she earns in 24 hours", "#### 42", 1),
        ("#### \u221242", "#### -42", 1),
        ("#### \uff0d42", "#### -42", 1),
        ("1,2,3", "123", 0),
        ("1,2,3", "3", 1),
        ("1,234,567", "1234567", 1),
        ("about 12,34", "1234", 0),
        ("it is 50%", "50", 1),
        ("$-5", "-5", 1),
        ("one half is 1/2", "0.5", 1),
        (r"\\boxed{\\frac{3}{4}}", "0.75", 1),
        ("2 1/2 hours", "2.5", 1),
        ("25 m2", "25", 1),
        ("on 3/4/2024 there were 7", "7", 1),
        ("1.5e3", "1500", 1),
        ("12\u202f500 km", "12500", 1),
        ("Rs.42", "42", 1),
        ("(3) - 4", "4", 1),
        ("####", "5", 0),
        ("7 #### seven", "7", 1),
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
    similarity._rouge.cache_clear()
    with pytest.raises(ArgumentError, match=r"pip install rouge-score"):
        rouge_l("a", "a")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("**B**", "B"),
        ("(B) because", "B"),
        ("The correct answer is B.", "B"),
        ("Answer: (B)", "B"),
        ("The answer is A? No, the answer is B.", "B"),
        ("A cat, so option B", "B"),
        (r"\\boxed{B}", "B"),
        ("B) Paris\nbut not C", "B"),
        ("I believe that B fits", "B"),
        ("Either A or B", None),
        ("because of that", None),
        ("", None),
    ],
)
def test_choice_takes_the_letter_that_an_answer_settles_on(answer, letter):
    assert choice(answer, "B") == float(letter == "B")


def test_what_is_ignored_is_left_out_of_both_and_named_in_the_rule():
    metric = metrics_of(TaskSection(path="x", ignore=("case", "punctuation")))["exact_match"]
    assert metric.score("Yes, Sir!", "yes sir") == 1.0
    assert metric.score("Yes, Madam!", "yes sir") == 0.0
    assert metric.rule.endswith("case and punctuation ignored")


def test_json_is_held_against_a_schema(tmp_path):
    file = tmp_path / "ticket.json"
    file.write_text('{"type": "object", "required": ["team"], "properties": {"team": {"enum": ["sales", "billing"]}}}')
    score = json_valid(str(file)).score
    answers = ['{"team": "sales"}', '```json\n{"team": "billing"}\n```', '{"team": "x"}', "{}", "Sure: {}", "[NaN]", ""]
    assert [score(answer, "") for answer in answers] == [1, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(("text", "fragment"), [("{", "is not JSON"), ('{"type": 5}', "is not a JSON Schema: at type")])
def test_a_schema_that_is_none_is_refused_with_its_file(tmp_path, text, fragment):
    (tmp_path / "schema.json").write_text(text)
    with pytest.raises(DataError, match=fragment):
        json_valid(str(tmp_path / "schema.json"))


def test_bleu_and_chrf_are_sacrebleus():
    import sacrebleu

    answers = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    references = ["The dog bit the man.", "It was not unexpected.", "The man bit him first."]
    assert similarity.corpus_bleu(answers, references) == sacrebleu.corpus_bleu(answers, [references]).score
    assert similarity.corpus_chrf(answers, references) == sacrebleu.corpus_chrf(answers, [references]).score
    assert similarity.bleu("The dog bit the man.", "The dog bit the man.") == pytest.approx(100.0)
    assert similarity.chrf("abc", "xyz") == 0.0
