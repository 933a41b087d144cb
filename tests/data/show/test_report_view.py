"""The report says first whether the data can be trained on, and every figure of it stands in the text."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from qlora_cli import console
from qlora_cli.data.report import DataReport, Finding, SourceReport, measure_lengths
from qlora_cli.data.show.report_view import histogram, show_report, verdict
from qlora_cli.progress import drawn_bar

SOURCE = SourceReport("train.jsonl", "train", 7473, 7461, 7088, 1_203_111, 1.0, 1.0)
LENGTHS = measure_lengths([20] * 60 + [40] * 38 + [55] + [900], "train.jsonl:71")
REPORT = DataReport(
    sources=(SOURCE,),
    findings=(),
    lengths=LENGTHS,
    num_read=7473,
    num_train=7088,
    num_eval=373,
    num_tokens=1_203_111,
    num_trained_tokens=601_555,
    max_length=512,
    truncation="drop",
    packing=True,
    num_packed_rows=2401,
    fill=0.9787,
    seconds=3.21,
)
LONG = Finding("longer than max_length", "refused", 12, "train.jsonl:71", "900 tokens", "set `data.max_length: 900`")
EMPTY = Finding("empty answer", "refused", 1, "train.jsonl:4", "the answer is empty", "fill it")
DUPLICATE = Finding("exact duplicate", "left out", 3, "train.jsonl:9", "the same as train.jsonl:2")
NOTE = Finding("double BOS", "noted", 7, "train.jsonl:1", "")


@pytest.fixture
def shown(capsys, monkeypatch):
    """What is printed of a report, in a pipe or in a terminal of some width."""

    def show(report, *, width=80, is_terminal=False):
        monkeypatch.setattr(
            console, "out", Console(highlight=False, soft_wrap=True, width=width, force_terminal=is_terminal)
        )
        show_report(report)
        return capsys.readouterr().out

    return show


def test_what_can_be_trained_on_is_said_in_one_sentence():
    assert verdict(REPORT) == ("trainable: 7,088 rows, 1,203,111 tokens, 50.0% of them trained; nothing refused")
    report = replace(REPORT, findings=(DUPLICATE, replace(LONG, verdict="cut"), NOTE))
    assert verdict(report).endswith("; 3 left out; 12 cut; nothing refused")


def test_what_cannot_be_trained_on_is_said_with_every_cause():
    report = replace(REPORT, findings=(LONG, EMPTY, DUPLICATE))
    assert verdict(report) == "not trainable: longer than max_length (12 rows); empty answer (1 row)"
    whole = Finding("the data as a whole", "refused", 0, "", "no row of data.train is left")
    assert verdict(replace(REPORT, findings=(whole,))) == "not trainable: no row of data.train is left"


def test_the_verdict_is_the_first_line_and_what_to_do_the_last(shown):
    lines = shown(replace(REPORT, findings=(LONG,))).splitlines()
    assert lines[0] == "not trainable: longer than max_length (12 rows)"
    assert lines[-3:] == [
        "longer than max_length",
        "  train.jsonl:71: 900 tokens",
        "  hint: set `data.max_length: 900`",
    ]


def test_every_figure_is_in_the_text(shown):
    out = shown(replace(REPORT, findings=(DUPLICATE, NOTE)))
    table = {}
    for line in out.splitlines():
        table.setdefault(line.split("   ")[0].strip(), line.split())
    assert table["train.jsonl"] == ["train.jsonl", "train", "7,473", "7,461", "7,088", "1,203,111"]
    assert table["exact duplicate"][2:] == ["3", "left", "out", "train.jsonl:9"]
    assert table["double BOS"][2:] == ["7", "noted", "train.jsonl:1"]
    for figure in (
        "7,088 rows an epoch, 1,203,111 tokens, 601,555 of them trained (50.0%)",
        "373 rows",
        "2,401 rows of 512 tokens, 97.9% of their places hold a token",
        "half have at most 20, 95% 40, 99% 55; the longest 900 (train.jsonl:71)",
        "3.2 s",
    ):
        assert figure in out


def test_a_finding_that_the_table_says_all_about_is_not_said_twice(shown):
    assert shown(replace(REPORT, findings=(NOTE,))).count("double BOS") == 1


def test_shares_are_shown_where_sources_are_mixed_and_only_there(shown):
    assert "of the tokens" not in shown(REPORT)
    other = replace(SOURCE, path="more.jsonl", share_of_rows=0.25, share_of_tokens=0.125)
    held_out = replace(SOURCE, path="eval.jsonl", part="eval")
    lines = shown(replace(REPORT, sources=(SOURCE, other, held_out))).splitlines()
    at = next(at for at, line in enumerate(lines) if line.startswith("mix"))
    assert lines[at + 2].split() == ["more.jsonl", "train", "25.0%", "12.5%"]
    assert not lines[at + 3].strip()


@pytest.mark.parametrize("width", [80, 100])
def test_nothing_is_wider_than_the_terminal_and_no_number_is_broken(shown, width):
    long_path = SourceReport("/data/" + "very/" * 20 + "long.jsonl", "train", *[52_002_000] * 3, 11_203_111_222, 1, 1)
    hint = Finding(LONG.what, "refused", 12, LONG.first, "word " * 60, "type " * 60)
    out = shown(replace(REPORT, sources=(long_path,), findings=(hint,)), width=width, is_terminal=True)
    plain = [line.replace("\x1b[0m", "").replace("\x1b[1m", "") for line in out.splitlines()]
    assert max(len(line) for line in plain if "\x1b" not in line) <= width
    assert "11,203,111,222" in out
    assert "/long.jsonl " in out


def test_in_a_pipe_a_hint_is_one_line(shown):
    long_hint = replace(LONG, hint="word " * 100)
    assert shown(replace(REPORT, findings=(long_hint,))).splitlines()[-1].count("word") == 100


def test_data_of_which_no_row_could_be_read_is_reported_too(shown):
    empty = replace(
        REPORT,
        findings=(EMPTY,),
        lengths=None,
        num_train=0,
        num_tokens=0,
        num_trained_tokens=0,
        num_packed_rows=0,
        fill=0,
    )
    out = shown(empty)
    assert out.startswith("not trainable: empty answer (1 row)\n")
    assert "0 rows an epoch\n" in out
    assert "tokens a row" not in out


def test_nothing_in_the_data_acts_on_the_terminal(shown):
    nasty = Finding("not readable", "refused", 1, "a\x1b[2J.jsonl:1", "seen \x1b]0;title\x07", "\x1b[31m")
    assert "\x1b" not in shown(replace(REPORT, findings=(nasty,), sources=(replace(SOURCE, path="\x1b[1m"),)))


def test_bars_are_as_long_as_their_share_and_the_limit_stands_between_them():
    title, *bins, last = histogram(measure_lengths([1] * 8 + [2] * 4 + [3] + [16], "a:9"), 3, width=8)
    assert title == "tokens a row (14 rows)"
    assert [line.split()[3:] for line in bins[:3]] == [["████████", "8"], ["████", "4"], ["█", "1"]]
    assert [line.split()[0] for line in bins[3:]] == ["-" * len(bins[3].split()[0]), "4", "16"]
    assert "max_length 3" in bins[3]
    assert bins[4].split() == ["4", "-", "15", "0"]
    assert "the longest 16 (a:9)" in last


def test_rows_that_are_all_of_one_length_are_one_bar():
    title, *bins, _ = histogram(measure_lengths([5, 5], "a:1"), 8)
    assert title == "tokens a row (2 rows)"
    assert len(bins) == 1


@pytest.mark.parametrize("share", [0, 1e-9, 0.1, 0.5, 0.99, 1])
def test_a_bar_never_passes_its_width_and_is_empty_for_nothing_alone(share):
    assert len(drawn_bar(share, 10)) <= 10
    assert bool(drawn_bar(share, 10)) == (share > 0)
