"""Which rows repeat others."""

from __future__ import annotations

import numpy as np

from qlora_cli.data.duplicate_index import DuplicateIndex
from qlora_cli.data.duplicates import MinHasher
from qlora_cli.data.example import Place, PlainText
from qlora_cli.data.rejection import RejectionReason

TEXT = "the quick brown fox jumps over the lazy dog and runs through the green field until the sun goes down again "


def see(seen, *texts):
    hasher = MinHasher()
    for number, text in enumerate(texts, start=1):
        place = Place("a.jsonl", number, number)
        digest, signature = text.encode(), hasher.signature(PlainText("", text, place))
        seen.keep(digest, place, seen.see(digest, signature))


def find(seen, in_train, in_eval):
    findings = seen.findings(np.array(in_train, bool), np.array(in_eval, bool))
    return [(finding.what, finding.num_rows, finding.first) for finding in findings]


def test_the_first_of_equal_rows_is_the_one_repeated():
    seen = DuplicateIndex("exact")
    place = Place("a.jsonl", 1, 1)
    assert seen.see(b"one", None) is None
    seen.keep(b"one", place, None)
    assert seen.see(b"one", None) == (RejectionReason.EXACT_DUPLICATE, 0)
    assert seen.place(0) == place


def test_a_row_that_is_not_kept_is_not_repeated():
    seen = DuplicateIndex("exact")
    see(seen, "one", "two")
    assert seen.see(b"one", None) == (RejectionReason.EXACT_DUPLICATE, 0)
    assert seen.see(b"three", None) is None


def test_near_rows_are_told_from_equal_ones():
    seen = DuplicateIndex("near")
    see(seen, TEXT * 3, TEXT * 3 + "tomorrow", TEXT * 3, "something else entirely, with other words in it")
    assert find(seen, [1, 1, 1, 1], [0, 0, 0, 0]) == [
        ("exact duplicates in train", 1, "a.jsonl:3"),
        ("near duplicates in train", 1, "a.jsonl:2"),
    ]


def test_what_stands_on_both_sides_is_told_of_the_held_out_rows():
    seen = DuplicateIndex("near")
    see(seen, TEXT * 3, TEXT * 3, TEXT * 3 + "tomorrow", "other")
    assert find(seen, [1, 0, 0, 1], [0, 1, 1, 0]) == [
        ("held-out rows with an exact duplicate in train", 1, "a.jsonl:2"),
        ("held-out rows with a near duplicate in train", 1, "a.jsonl:3"),
    ]


def test_rows_that_are_used_nowhere_repeat_nothing():
    seen = DuplicateIndex("exact")
    see(seen, "one", "one")
    assert find(seen, [1, 0], [0, 0]) == []
