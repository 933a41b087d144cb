"""Progress of long work: a bar in a terminal, elsewhere a calm line now and then.

Phases may be nested, an evaluation in a training for instance; each has a line of its own in a terminal.
Elsewhere the outermost one prints that has lines at all. Work of a second or two shows nothing.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.live import Live
from rich.text import Text

from qlora_cli import console, environment
from qlora_cli.garbage import collector_off, set_imports_aside
from qlora_cli.sparkline import Sparkline

BAR_AFTER_SECONDS = 1.0
LINE_AFTER_SECONDS = 2.0
LEAST_SECONDS_BETWEEN_LINES = 5.0
MOST_SECONDS_BETWEEN_LINES = 60.0
"""Between these, a line comes when the phase has taken twice as long as at the line before."""

TICK_SECONDS = 0.2

EIGHTHS = " ▏▎▍▌▋▊▉"
"""Nothing and one to seven eighths of a character."""

WIDEST_BAR = 32
NARROWEST_BAR = 6


class Phase:
    """A long piece of work.

    Args:
        name: what is done, as in "evaluating".
        total: how much there is to do; None where it is not known.
        is_lasting: the bar is shown immediately, and stays on the screen at the end; there are no lines, since whoever
            does it has better ones.
    """

    def __init__(self, name: str, total: int | None = None, *, is_lasting: bool = False) -> None:
        self.name = name
        self.total = total
        self.done = 0
        self.text = ""
        """Figures of the moment."""

        self.is_lasting = is_lasting
        self.curve: Sparkline | None = None
        """Drawn after the bar where there is room and the screen has the characters."""

        self._first_done = 0
        self._started = time.monotonic()
        self._next_line = LINE_AFTER_SECONDS

    def advance(self, count: int = 1) -> None:
        """So much more is done."""
        self.update(self.done + count)

    def update(self, done: int, text: str | None = None) -> None:
        """So much is done, with `text` as the figures of the moment."""
        self.done = done
        self.text = self.text if text is None else text
        if _screen.has_no_ticker:
            _screen.show()

    def begin_at(self, done: int) -> None:
        """Work that was done before; it says nothing about the speed."""
        self.done = self._first_done = done

    @property
    def seconds(self) -> float:
        """Since the phase began."""
        return time.monotonic() - self._started

    @property
    def is_visible(self) -> bool:
        """Whether it has taken long enough for a bar."""
        return self.is_lasting or self.seconds >= BAR_AFTER_SECONDS

    def line_is_due(self) -> bool:
        """Whether it is time for a line; asked once a line."""
        if self.seconds < self._next_line:
            return False
        pause = min(max(self.seconds, LEAST_SECONDS_BETWEEN_LINES), MOST_SECONDS_BETWEEN_LINES)
        self._next_line = self.seconds + pause
        return True

    def line(self) -> str:
        """The progress so far, as a line.

        >>> Phase("loading the base").line()
        'loading the base ...'
        >>> Phase("evaluating", 47).line()
        'evaluating 0/47'
        """
        seconds = f", {in_time(self.seconds)} so far" if self.seconds >= LEAST_SECONDS_BETWEEN_LINES else ""
        is_counted = self.done or self.total
        return f"{self.name} {self._count()}{seconds}" if is_counted else f"{self.name}{seconds or ' ...'}"

    def bar(self, width: int, *, is_ascii: bool) -> Text:
        """One line of at most `width` columns: the name and the count first, then what else there is room for."""
        count = self._count() if self.done or self.total else ""
        figures = [part for part in self.text.split("  ") if part]
        parts = [self.name, count, *figures, self._time()]
        while len(parts) > 2 and _width_of(parts) > width:  # the time goes first, then the last figure
            parts.pop()
        line = Text(self.name, no_wrap=True)
        length = min(width - _width_of(parts) - 2, WIDEST_BAR)
        if self.total and length >= NARROWEST_BAR:
            filled = min(length, length * self.done // self.total)
            full, empty = ("#", "-") if is_ascii else ("━", "─")
            line.append("  ").append(full * filled, style="cyan").append(empty * (length - filled), style="dim")
        drawn = "" if is_ascii or self.curve is None else str(self.curve)
        if drawn and line.cell_len + _width_of(["", *parts[1:]]) + len(drawn) + 4 <= width:
            line.append("  ").append(drawn, style="cyan")
        for part in filter(None, parts[1:]):
            line.append("  ").append(part, style="bold" if part == count else "")
        line.truncate(width, overflow="crop" if is_ascii else "ellipsis")
        return line

    def _count(self) -> str:
        return f"{self.done:,}/{self.total:,}" if self.total else f"{self.done:,}"

    def _time(self) -> str:
        """The time that is left where it can be estimated, else the time taken."""
        gained = self.done - self._first_done
        if self.total and gained > 0 and self.done < self.total:
            return f"{in_time(self.seconds / gained * (self.total - self.done))} left"
        return in_time(self.seconds)


def in_time(seconds: float) -> str:
    """
    >>> in_time(7.4), in_time(83), in_time(7384)
    ('7 s', '1:23', '2:03:04')
    """
    minutes, whole = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{whole:02}"
    return f"{minutes}:{whole:02}" if minutes else f"{whole} s"


def _width_of(parts: list[str]) -> int:
    return len("  ".join(filter(None, parts)))


class _Screen:
    """The phases under way, outermost first, and how they are shown."""

    def __init__(self) -> None:
        self._phases: list[Phase] = []
        self._live: Live | None = None
        self._lock = threading.RLock()
        self._ticker: threading.Thread | None = None
        self._is_over = threading.Event()
        self._last_shown = -math.inf

    @property
    def has_no_ticker(self) -> bool:
        """Whether phases must show themselves when they move."""
        return self._ticker is None

    def enter(self, phase: Phase, *, ticks: bool) -> None:
        with self._lock:
            if not self._phases:
                self._last_shown = -math.inf
            self._phases.append(phase)
            if ticks and self._ticker is None and not console.err.quiet:
                self._is_over.clear()
                self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)
                self._ticker.start()
        if phase.is_lasting:
            self.show(is_forced=True)

    def leave(self, phase: Phase) -> None:
        ticker = None
        with self._lock:
            self._phases.remove(phase)
            if not self._phases:
                ticker, self._ticker = self._ticker, None
                self._is_over.set()
        if ticker is not None:
            ticker.join()
        with self._lock:
            if self._live is None:
                return
            if any(each.is_visible for each in self._phases):
                self._live.refresh()
            else:
                self._live.stop()
                self._live = None
            if phase.is_lasting:
                console.err.print(self._bar_of(phase))

    def show(self, *, is_forced: bool = False) -> None:
        """Bring the screen up to date."""
        with self._lock:
            now = time.monotonic()
            if not self._phases or console.err.quiet or (now - self._last_shown < TICK_SECONDS and not is_forced):
                return
            self._last_shown = now
            if not console.err.is_interactive:
                speaker = next((phase for phase in self._phases if not phase.is_lasting), None)
                if speaker is not None and speaker.line_is_due():
                    console.note(speaker.line())
                return
            if not any(phase.is_visible for phase in self._phases):
                return
            if self._live is None:
                self._live = Live(console=console.err, auto_refresh=False, transient=True, get_renderable=self._bars)
                self._live.start()
            self._live.refresh()

    def _bars(self) -> Text:
        return Text("\n").join(self._bar_of(phase) for phase in self._phases if phase.is_visible)

    def _bar_of(self, phase: Phase) -> Text:
        return phase.bar(max(console.err.width - 1, 1), is_ascii=console.err.options.ascii_only)

    def _tick(self) -> None:
        while not self._is_over.wait(TICK_SECONDS):
            self.show()


_screen = _Screen()


@contextmanager
def progress(name: str, total: int | None = None, *, is_lasting: bool = False, ticks: bool = True) -> Iterator[Phase]:
    """Show that the block is under way.

    Args:
        name: what is done, as in "evaluating".
        total: how much there is to do; None where it is not known.
        is_lasting: as `Phase` has it.
        ticks: whether a thread shows it; without one it is shown when it advances. A block that forks has no thread:
            what another thread holds at that moment stays held in the child for ever.
    """
    phase = Phase(name, total, is_lasting=is_lasting)
    _screen.enter(phase, ticks=ticks)
    try:
        yield phase
    finally:
        _screen.leave(phase)


@contextmanager
def loading_libraries() -> Iterator[None]:
    """Show that the block imports what is heavy, and spare it what took a third of the time and served nothing.

    Of the million objects that imports leave behind, garbage collections find none to free.
    """
    with progress("loading the libraries"), collector_off(), environment.nothing_is_compiled():
        yield
        set_imports_aside()


def drawn_bar(share: float, width: int) -> str:
    """A bar of `share` times `width` characters, in eighths; anything above nothing is seen.

    >>> drawn_bar(0.5, 3), drawn_bar(0.0001, 3), drawn_bar(0, 3), drawn_bar(1, 3)
    ('█▌', '▏', '', '███')
    """
    eighths = round(share * width * 8) or (share > 0)
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()
