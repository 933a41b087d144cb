"""A bar in a terminal, calm lines elsewhere, nothing for what is quick."""

from __future__ import annotations

import io
import re
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from qlora_cli import console, progress
from qlora_cli.progress import Phase

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")


CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def plain(file: io.StringIO) -> str:
    """What was written, without colours and movements of the cursor."""
    return CODES.sub("", file.getvalue())


class Clock:
    """A clock that only moves when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=clock))  # servers of other tests have their own
    return clock


@pytest.fixture
def screen(monkeypatch):
    """A function that puts a terminal, or something else, in the place of stderr."""

    def make(width: int = 80, *, is_terminal: bool = True, **options) -> io.StringIO:
        file = io.StringIO()
        view = Console(file=file, force_terminal=is_terminal, width=width, soft_wrap=True, highlight=False, **options)
        monkeypatch.setattr(console, "err", view)
        return file

    return make


def go(clock, num_steps, *, seconds, total=None, name="evaluating"):
    with progress.progress(name, total, ticks=False) as phase:
        for _ in range(num_steps):
            clock.now += seconds
            phase.advance()


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_quick_shows_nothing(clock, screen, terminal):
    file = screen(is_terminal=terminal)
    go(clock, 9, seconds=0.1, total=9)
    assert file.getvalue() == ""


def test_in_a_pipe_lines_come_at_longer_and_longer_intervals_without_control_characters(clock, screen):
    file = screen(is_terminal=False)
    go(clock, 3600, seconds=0.5, total=3600)  # half an hour
    lines = file.getvalue().splitlines()
    assert not CONTROL.search(file.getvalue())
    assert lines[:4] == [
        "evaluating 4/3,600",
        "evaluating 14/3,600, 7 s so far",
        "evaluating 28/3,600, 14 s so far",
        "evaluating 56/3,600, 28 s so far",
    ]
    assert len(lines) == 34  # 5 until 56 s, then one a minute


def test_a_dumb_terminal_gets_the_lines_of_a_pipe(clock, screen):
    file = screen(_environ={"TERM": "dumb"})
    go(clock, 10, seconds=0.5, total=10)
    assert file.getvalue() == "evaluating 4/10\n"


def test_without_a_total_a_line_says_what_is_done(clock, screen):
    file = screen(is_terminal=False)
    with progress.progress("loading org/base", ticks=False) as phase:
        clock.now += 2
        phase.update(0)
    assert file.getvalue() == "loading org/base ...\n"


def test_a_thread_shows_what_cannot_show_itself(screen):
    file = screen(is_terminal=False)
    with progress.progress("loading org/base"):
        time.sleep(progress.LINE_AFTER_SECONDS + 0.7)
    assert file.getvalue() == "loading org/base ...\n"


def test_a_bar_comes_after_a_second_and_is_gone_at_the_end(clock, screen):
    file = screen(_environ={"TERM": "xterm", "NO_COLOR": "1"})
    with progress.progress("evaluating", 4, ticks=False) as phase:
        clock.now += 0.9
        phase.advance()
        assert file.getvalue() == ""
        clock.now += 0.9
        phase.advance()
        assert "evaluating  " + "━" * 16 + "─" * 16 + "  2/4  1 s left" in plain(file)
    assert file.getvalue().endswith("\x1b[2K")  # the line is erased


def test_a_phase_in_a_phase_has_a_line_of_its_own_and_in_a_pipe_the_word(clock, screen):
    file = screen(_environ={"TERM": "xterm"}, no_color=True)
    with progress.progress("training", 10, is_lasting=True, ticks=False) as outer:
        outer.update(5, "loss 1.0")
        go(clock, 3, seconds=1, total=3)
    assert re.search(r"\rtraining [^\r\n]* 5/10 [^\r\n]*\nevaluating [^\r\n]* 2/3 ", plain(file))
    assert "training  " + "━" * 16 + "─" * 16 + "  5/10  loss 1.0  3 s left\n" in plain(file)  # it stays
    file = screen(is_terminal=False)
    with progress.progress("training", 10, is_lasting=True, ticks=False):
        go(clock, 3, seconds=1, total=3)
    assert file.getvalue() == "evaluating 2/3\n"


@pytest.mark.parametrize("width", [10, 20, 40, 80, 200])
def test_a_bar_is_one_line_that_fits_and_keeps_name_and_count_longest(clock, width):
    phase = Phase("training", 1000)
    phase.update(30, "loss 1.2345  12,345 tokens/s  23.4 GiB")
    clock.now += 90
    line = phase.bar(width, is_ascii=False).plain
    assert len(line) <= width
    assert line.startswith("training"[: width - 1])
    assert ("30/1,000" in line) == (width >= 20)
    assert ("loss 1.2345" in line) == (width >= 40)
    assert ("23.4 GiB" in line) == (width >= 80)
    assert ("48:30 left" in line) == (width >= 80)


def test_where_the_screen_knows_only_ascii_so_does_the_bar():
    phase = Phase("merging", 2)
    phase.update(1)
    assert phase.bar(60, is_ascii=True).plain.startswith("merging  " + "#" * 16 + "-" * 16 + "  1/2")


def test_a_failure_takes_the_bar_off_the_screen(clock, screen):
    file = screen(_environ={"TERM": "xterm"})
    with pytest.raises(ZeroDivisionError), progress.progress("evaluating", 2, ticks=False) as phase:
        clock.now += 2
        phase.advance()
        raise ZeroDivisionError
    assert file.getvalue().endswith("\x1b[2K")
    assert "\x1b[?25h" in file.getvalue()  # the cursor is back


def test_a_process_that_prints_nothing_shows_no_bar(clock, screen):
    file = screen(_environ={"TERM": "xterm"})
    console.err.quiet = True
    go(clock, 3, seconds=2, total=3)
    assert file.getvalue() == ""
