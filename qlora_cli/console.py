"""The one place that prints: results and tables to stdout, notes to stderr, JSON where it is asked for.

Secrets are taken out of all of it but rows and answers, which are printed as they are."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal, TextIO

from rich.console import Console
from rich.text import Text

from qlora_cli.errors import QloraError
from qlora_cli.secrets import redacted

NUMBER = re.compile(r"[<+-]?[\d.,]*%?|-")
"""Cells that a table aligns right: a number or its upper bound, a percentage, a dash or nothing."""


class PlainConsole(Console):
    """A terminal, or a pipe or notebook that gets the same lines without bars.

    In a notebook rich would draw HTML, and needs ipywidgets for a bar. It also takes FORCE_COLOR for a terminal, which
    notebooks set although lines cannot be drawn over there.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        colours: Literal["standard", "auto"] = "standard" if os.environ.get("FORCE_COLOR") else "auto"
        super().__init__(stderr=stderr, color_system=colours, highlight=False, soft_wrap=True, force_jupyter=False)

    @property
    def is_terminal(self) -> bool:
        return self.file.isatty() and super().is_terminal


out = PlainConsole()
err = PlainConsole(stderr=True)


def has_colour(screen: Console) -> bool:
    """Whether colours are shown there; under NO_COLOR, on a dumb terminal and in a pipe it cannot."""
    return screen.color_system is not None and not screen.no_color


def note(text: str) -> None:
    """One calm line about what happens, to stderr."""
    err.print(Text(redacted(text)))


def next_command(*words: str) -> None:
    """The next command to type, as a shell takes it, to stderr."""
    note(f"next: {shlex.join(words)}")


def warn(text: str) -> None:
    """One line that the user should read, to stderr."""
    err.print(Text.assemble(("warning: ", "yellow"), redacted(text)))


def show_error(error: QloraError) -> None:
    """Each problem on one line, its hint on the next, to stderr."""
    for problem in error.problems:
        place = f"{problem.place}: " if problem.place else ""
        err.print(Text.assemble(("error: ", "bold red"), place + problem.text))
        if problem.hint:
            err.print(Text.assemble(("hint: ", "cyan"), problem.hint))


def result(text: str | Text) -> None:
    """One line of what the command made or found, to stdout; a `Text`, such as a row of data, as it is."""
    if isinstance(text, str):
        out.print(Text(redacted(text)))
        return
    with _content():
        out.print(text)


def piece(text: str) -> None:
    """Part of an answer, immediately and exactly as it is (rich would expand tabs), to stdout."""
    with _content():
        out.file.write(text)
        out.file.flush()


def aside(text: str) -> None:
    """Part of a model's reasoning, immediately, to stderr; dim where colours are shown."""
    err.print(Text(text, style="dim"), end="")


def data(value: Any, *, is_answer: bool = False) -> None:
    """`value` as JSON on stdout, for `--json`; NaN and infinities are refused. A model's answer stays as it is."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with _content() if is_answer else nullcontext():
        sys.stdout.write(text if is_answer else redacted(text))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout; a column of numbers is aligned right, and the first column is never broken."""
    from rich.table import Table  # 6 ms that most commands do not need

    rows = [[redacted(cell) for cell in row] for row in rows]
    view = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for index, column in enumerate(columns):
        is_numeric = index > 0 and all(NUMBER.fullmatch(row[index]) for row in rows)
        justify: Literal["left", "right"] = "right" if is_numeric else "left"
        view.add_column(column, header_style="bold", justify=justify, overflow="fold", no_wrap=index == 0)
    for row in rows:
        view.add_row(*map(Text, row))
    out.print(view)


def facts(pairs: Mapping[str, str], *, title: str = "") -> None:
    """Label and value, one pair a line, aligned, on stdout."""
    if title:
        out.print(Text(title, style="bold"))
    width = max(map(len, pairs), default=0)
    for label, value in pairs.items():
        out.print(Text.assemble((f"  {label:<{width}}  ", "dim"), redacted(value)))


STREAM_NAMES = {"<stdout>": "standard output", "<stderr>": "standard error"}


class CleanStream:
    """A stream that takes the secrets out of each text that is written to it; else it is the stream below."""

    def __init__(self, below: TextIO) -> None:
        self.has_content = False
        """Whether rows or answers are written, which stay as they are."""

        self._below = below

    def write(self, text: str) -> int:
        with self._named():
            self._below.write(self._cleaned(text))
        return len(text)

    def flush(self) -> None:
        with self._named():
            self._below.flush()

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """An error of the system about this stream names it: it may be a file on a full disk."""
        try:
            yield
        except OSError as fault:
            fault.filename = STREAM_NAMES.get(self._below.name, self._below.name)
            raise

    def _cleaned(self, text: str) -> str:
        return text if self.has_content else redacted(text)

    def __setattr__(self, name: str, value: Any) -> None:
        # W&B puts a `write` of its own over a stream's, to send what the screen shows; it must get no more than that.
        def write_clean(text: str) -> Any:
            return value(self._cleaned(text))

        super().__setattr__(name, write_clean if name == "write" else value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._below, name)


def keep_streams_clean() -> None:
    """Let no secret through to stdout and stderr for the rest of the process: libraries and tracebacks write there too.

    Job schedulers keep what comes there. Python writes each message whole, so that no secret comes in two pieces.
    """
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), CleanStream):
            setattr(sys, name, CleanStream(getattr(sys, name)))


@contextmanager
def streams_kept_clean() -> Iterator[None]:
    """As `keep_streams_clean` while the block runs; a notebook keeps what is written there."""
    before = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    keep_streams_clean()
    try:
        yield
    finally:
        for name, stream in before.items():
            setattr(sys, name, stream)


@contextmanager
def flushed() -> Iterator[None]:
    """All that the block prints has reached stdout when it is over.

    Raises:
        OSError: if stdout cannot be written, such as a file on a full disk.
    """
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        except OSError as fault:
            # Python flushes once more when it ends, and would print a traceback.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if not isinstance(fault, BrokenPipeError):  # whoever read it has had enough
                raise


@contextmanager
def _content() -> Iterator[None]:
    """In the block, output to stdout is the user's data or a model's answer."""
    stream = sys.stdout
    if not isinstance(stream, CleanStream):
        yield
        return
    stream.has_content = True
    try:
        yield
    finally:
        stream.has_content = False


SIZE_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def size_in_words(num_bytes: float) -> str:
    """A number of bytes as people read it.

    >>> size_in_words(999), size_in_words(1_234_000), size_in_words(999_960)
    ('999 bytes', '1.2 MB', '1.0 MB')
    """
    power = 0
    while num_bytes >= 999.95 and power < len(SIZE_UNITS) - 1:
        num_bytes, power = num_bytes / 1000, power + 1
    return f"{num_bytes:.{min(power, 1)}f} {SIZE_UNITS[power]}"


NOISY_LIBRARIES = ("accelerate", "bitsandbytes", "datasets", "huggingface_hub", "peft", "torch", "transformers", "trl")


class CleanFormatter(logging.Formatter):
    """Lines of a log without secrets; exceptions and their causes are part of a line."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


class LogFile(logging.FileHandler):
    """A log that loses lines on a full disk: what has to be written says so itself, and has a hint."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        pass


@contextmanager
def library_noise_to(log_path: Path | None) -> Iterator[None]:
    """Send what the libraries log and warn into a file, or nowhere, instead of onto the screen.

    Args:
        log_path: appended to; None drops all below an error.
    """
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils import logging as transformers_logging  # heavy, so only where a model is used

    has_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    handler = logging.NullHandler() if log_path is None else LogFile(log_path, encoding="utf-8")
    handler.setFormatter(CleanFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    with_own_handlers = {  # torch gives them to many of its modules
        name
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger) and logger.handlers and name.partition(".")[0] in NOISY_LIBRARIES
    }
    loggers = [logging.getLogger(name) for name in {*NOISY_LIBRARIES, "py.warnings", *with_own_handlers}]
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    logging.captureWarnings(True)
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        logging.captureWarnings(False)
        if has_bars:
            transformers_logging.enable_progress_bar()
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
        with suppress(OSError):
            handler.close()
