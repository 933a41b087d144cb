"""Equal and nearly equal rows: found whatever their place, and told from rows that only look alike."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_cli.data import duplicates
from qlora_cli.data.duplicates import MinHasher, NearDuplicates, exact_digest
from qlora_cli.data.example import Conversation, Place, PlainText

WORDS = [f"word{number}" for number in range(2000)]
PLACE = Place("a.jsonl", 1, 1)


def text(*words, place=PLACE):
    return PlainText("", " ".join(words), place)


def chat(*turns, tools=None, place=PLACE):
    return Conversation([{"role": role, "content": content} for role, content in turns], tools, place)


@pytest.fixture(scope="module")
def hasher():
    return MinHasher()


def random_words(seed, count=120):
    return random.Random(seed).choices(WORDS, k=count)


def jaccard(one, other):
    """Of the five-word shingles, counted out."""
    first, second = ({tuple(words[at : at + 5]) for at in range(len(words) - 4)} for words in (one, other))
    return len(first & second) / len(first | second)


def found(hasher, *examples):
    """For each row the number of the one that it repeats."""
    near = NearDuplicates()
    return [near.add(hasher.signature(example), number) for number, example in enumerate(examples)]


QUESTION = [("user", "Why is the sky blue?"), ("assistant", "Because of Rayleigh scattering.")]
ASKED, ANSWERED = ({"role": role, "content": content} for role, content in QUESTION)


def test_the_same_turns_are_equal_wherever_they_stand():
    elsewhere = chat(*QUESTION, place=Place("b.jsonl", 7, 7))
    assert exact_digest(chat(*QUESTION)) == exact_digest(elsewhere)
    assert len(exact_digest(elsewhere)) == 16


@pytest.mark.parametrize(
    "other",
    [
        chat(("user", "Why is the sky blue? "), QUESTION[1]),
        chat(("user", ""), *QUESTION),
        chat(("system", QUESTION[0][1]), QUESTION[1]),
        chat(*QUESTION, tools=[{"name": "search"}]),
        chat(("user", "Why is the sky blue?Because of Rayleigh scattering."), ("assistant", "")),
        PlainText(QUESTION[0][1], QUESTION[1][1], PLACE),
        Conversation([dict(ASKED), {**ANSWERED, "train": False}], None, PLACE),
        Conversation([dict(ASKED), {**ANSWERED, "reasoning_content": "hm"}], None, PLACE),
    ],
)
def test_another_text_role_tool_or_training_flag_is_another_row(other):
    assert exact_digest(other) != exact_digest(chat(*QUESTION))


def test_a_call_differs_by_its_arguments_and_not_by_its_id():
    def call(identity, city):
        function = {"name": "weather", "arguments": {"city": city}}
        message = {"role": "assistant", "tool_calls": [{"type": "function", "id": identity, "function": function}]}
        return exact_digest(Conversation([message], None, PLACE))

    assert call("call_1", "Oslo") == call("call_2", "Oslo") != call("call_1", "Rome")


def test_texts_join_only_where_they_joined():
    assert exact_digest(PlainText("ab", "c", PLACE)) != exact_digest(PlainText("a", "bc", PLACE))


def test_a_row_with_a_few_words_changed_repeats_the_first(hasher):
    words = random_words(1)
    changed = [*words[:60], "other", *words[61:]]
    assert jaccard(words, changed) > 0.9
    assert found(hasher, text(*random_words(2)), text(*words), text(*changed)) == [None, None, 1]


def test_a_row_that_shares_half_its_words_repeats_nothing(hasher):
    words = random_words(3)
    assert found(hasher, text(*words), text(*words[:80], *random_words(4, 40))) == [None, None]


def test_letter_case_and_spaces_make_no_other_row(hasher):
    words = random_words(5, 30)
    assert hasher.signature(text(*words)) == hasher.signature(PlainText("", "\n ".join(words).upper(), PLACE))


def test_words_in_another_order_are_another_row(hasher):
    words = random_words(6)
    assert found(hasher, text(*words), text(*sorted(words))) == [None, None]


def test_sums_that_differ_in_their_sign_are_other_rows(hasher):
    def sum_of(sign, result):
        return chat(("user", f"Give me the result of 3 {sign} 5 please"), ("assistant", result))

    assert found(hasher, sum_of("+", "8"), sum_of("-", "-2")) == [None, None]


def test_chinese_text_is_compared_by_characters(hasher):
    first = (
        "藻类是一类多样的单细胞或多细胞的真核生物,它们可以进行光合作用,能将二氧化碳转化为有机物,并在此过程中产生氧气。"
    )
    second = first.replace("多样的", "多种的")
    third = "河流和海滩是自然地理特征。它们是大自然界独立形成的,没有人为干涉的自然景观,连接高地与低地,将雨水带入大海。"
    assert len(first.split()) == 1
    assert found(hasher, *(PlainText("", content, PLACE) for content in (first, third, second))) == [None, None, 0]


def test_one_system_prompt_does_not_make_all_rows_alike(hasher):
    prompt = ("system", " ".join(random_words(7, 500)))
    rows = [chat(prompt, ("user", " ".join(random_words(seed, 8))), ("assistant", "yes")) for seed in (8, 9)]
    assert found(hasher, *rows) == [None, None]


def test_reasoning_and_calls_count_as_text(hasher):
    words = random_words(10, 40)
    thought = {"role": "assistant", "content": "", "reasoning_content": " ".join(words)}
    called = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": " ".join(words)}}}]}
    for message in (thought, called):
        assert hasher.signature(Conversation([message], None, PLACE)) is not None


@pytest.mark.parametrize(
    ("content", "has_signature"), [("a b c d", False), ("a b c d e", True), ("", False), ("天空是蓝", False)]
)
def test_a_text_of_fewer_than_five_words_has_no_signature(hasher, content, has_signature):
    assert (hasher.signature(PlainText("", content, PLACE)) is not None) == has_signature


@pytest.mark.slow
def test_a_signature_is_192_bytes_and_those_of_other_processes_are_the_same(hasher):
    code = (
        "from qlora_cli.data.duplicates import *; from qlora_cli.data.example import *\n"
        "print(MinHasher().signature(PlainText('', 'one two three four five six', Place('a', 1, 1))).hex())"
    )
    theirs = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    ours = hasher.signature(text("one", "two", "three", "four", "five", "six"))
    assert (len(ours), ours.hex()) == (192, theirs)
    assert len(pickle.dumps(ours)) < 256


def test_similarity_is_estimated_as_counted(hasher):
    """Of pairs clearly above the threshold nearly all are found, and none clearly below."""
    generator = random.Random(11)
    outcomes = []
    for seed in range(150):
        words = random_words(seed, generator.choice((40, 120, 300)))
        changed = list(words)
        for _ in range(generator.randrange(1, 1 + len(words) // 12)):
            changed[generator.randrange(len(words))] = "other"
        outcomes.append((jaccard(words, changed), found(hasher, text(*words), text(*changed))[1] == 0))
    above = [is_found for similarity, is_found in outcomes if similarity > 0.9]
    below = [is_found for similarity, is_found in outcomes if similarity < 0.68]
    assert len(above) > 10
    assert len(below) > 10
    assert sum(above) >= 0.98 * len(above)
    assert not any(below)


def test_a_repeated_row_is_not_added(hasher):
    words, others = random_words(12, 160), random_words(13, 160)
    first, second, third = (text(*others[:number], *words[number:]) for number in (0, 12, 24))
    assert found(hasher, first, second) == [None, 0]
    assert found(hasher, second, third) == [None, 0]
    assert found(hasher, first, second, third) == [None, 0, None]


def test_rows_are_found_after_they_were_moved_to_the_sorted_keys(hasher, monkeypatch):
    monkeypatch.setattr(duplicates, "NUM_RECENT_ROWS", 4)
    rows = [text(*random_words(seed, 30)) for seed in range(11)]
    near = NearDuplicates()
    assert [near.add(hasher.signature(row), 100 + number) for number, row in enumerate(rows)] == [None] * 11
    assert [near.add(hasher.signature(row), 0) for row in rows] == list(range(100, 111))


def test_of_many_rows_those_are_compared_that_share_most_keys(hasher, monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_COMPARED", 1)
    pattern = random_words(13, 100)
    rows = [text(*pattern, *random_words(seed, 20)) for seed in range(20, 32)]
    near = NearDuplicates()
    kept = [number for number, row in enumerate(rows) if near.add(hasher.signature(row), number) is None]
    assert len(kept) > 3
    assert [near.add(hasher.signature(rows[number]), 99) for number in kept] == kept


@given(st.text(max_size=80))
def test_any_text_has_a_digest_and_perhaps_a_signature(content):
    example = PlainText("", content, PLACE)
    assert exact_digest(example) == exact_digest(PlainText("", content, Place("b", 2, 2)))
    signature = HASHER.signature(example)
    assert signature is None or len(signature) == 192


HASHER = MinHasher()


def test_half_a_surrogate_pair_is_text_too(hasher):
    example = PlainText("", "\ud800 two three four five", PLACE)
    assert len(exact_digest(example)) == 16
    assert hasher.signature(example) is not None
