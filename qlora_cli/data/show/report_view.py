"""The data report as a person reads it: the result, then the figures, then what to do."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.text import Text

from qlora_cli import console
from qlora_cli.data.report import DataReport, Finding, Lengths, SourceReport
from qlora_cli.progress import drawn_bar
from qlora_cli.visible_text import visible

BAR_WIDTH = 48
SHORTEST_PATH, LONGEST_PATH = 16, 40
TEXT_WIDTH = 100
"""Longer lines are broken in a terminal, and nowhere else."""

EMPTY_BINS_DRAWN = 2


def show_report(report: DataReport) -> None:
    """Print the report."""
    style = "bold green" if report.is_trainable else "bold red"
    word, _, rest = verdict(report).partition(":")
    _print(Text.assemble((word, style), f":{rest}"))
    if report.sources:
        console.result("")
        console.table(*_sources(report))
    if _mixed(report):
        console.result("")
        console.table(*_mix(report))
    if report.findings:
        console.result("")
        rows = [(found.what, f"{found.num_rows:,}", found.verdict, visible(found.first)) for found in report.findings]
        show_lines(("found", "rows", "what happens", "first"), rows)
    if report.lengths is not None:
        console.result("")
        for line in histogram(report.lengths, report.max_length):
            console.result(line)
    console.result("")
    console.facts(_facts(report))
    for found in report.findings:
        _show_finding(found)


def show_lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table whose last column may be of any length, since places and paths are there to be copied whole."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)][:-1]
    rights = [all(console.NUMBER.fullmatch(cell) for cell in cells) for cells in zip(*rows, strict=True)]
    for number, row in enumerate((columns, *rows)):
        cells = [
            f"{cell:>{width}}" if right else f"{cell:<{width}}"
            for cell, width, right in zip(row, widths, rights, strict=False)
        ]
        console.result(Text("   ".join((*cells, row[-1])), style="" if number else "bold"))


def verdict(report: DataReport) -> str:
    """One sentence: whether training would start, and on what."""
    if not report.is_trainable:
        refused = [_counted(found) for found in report.findings if found.verdict == "refused"]
        return f"not trainable: {'; '.join(refused)}"
    parts = [
        f"trainable: {rows_in_words(report.num_train)}, {report.num_tokens:,} tokens, "
        f"{_share(report.num_trained_tokens, report.num_tokens)} of them trained"
    ]
    for happens in ("left out", "cut"):
        num_rows = sum(found.num_rows for found in report.findings if found.verdict == happens)
        if num_rows:
            parts.append(f"{num_rows:,} {happens}")
    return "; ".join((*parts, "nothing refused"))


def histogram(lengths: Lengths, max_length: int, *, width: int = BAR_WIDTH) -> Iterator[str]:
    """Lines of bars, rows over tokens, with a line at `max_length`; runs of empty bins are one line."""
    total = sum(count for _, _, count in lengths.histogram)
    most = max(count for _, _, count in lengths.histogram)
    yield f"tokens a row ({rows_in_words(total)})"
    number_width = len(f"{lengths.histogram[-1][1] - 1:,}")
    count_width = len(f"{most:,}")
    limit = f" max_length {max_length:,} ".center(2 * number_width + width + 5, "-")
    is_limit_drawn = False
    for first, end, count in _without_deserts(lengths.histogram):
        if first > max_length and not is_limit_drawn:
            yield f"  {limit}"
            is_limit_drawn = True
        yield (
            f"  {first:>{number_width},} - {end - 1:>{number_width},}  {drawn_bar(count / most, width):<{width}}  "
            f"{count:>{count_width},}"
        )
    yield (
        f"  half have at most {lengths.p50:,}, 95% {lengths.p95:,}, 99% {lengths.p99:,}; "
        f"the longest {lengths.longest:,} ({visible(lengths.longest_place)})"
    )


def rows_in_words(number: int) -> str:
    """
    >>> rows_in_words(1), rows_in_words(2000)
    ('1 row', '2,000 rows')
    """
    return f"{number:,} row" + "s" * (number != 1)


def _without_deserts(bins: tuple[tuple[int, int, int], ...]) -> Iterator[tuple[int, int, int]]:
    """The bins, with more than two empty neighbours as one."""
    for is_empty, run in groupby(bins, key=lambda item: item[2] == 0):
        neighbours = list(run)
        if is_empty and len(neighbours) > EMPTY_BINS_DRAWN:
            yield neighbours[0][0], neighbours[-1][1], 0
        else:
            yield from neighbours


Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


def _sources(report: DataReport) -> Table:
    columns = ("source", "part", "read", "kept", "seen", "tokens")
    cells = [
        (source.part, *(f"{number:,}" for number in numbers))
        for source in report.sources
        for numbers in [(source.num_read, source.num_kept, source.num_rows, source.num_tokens)]
    ]
    # A path takes what the numbers leave, so that none of them is broken.
    others = sum(3 + max(map(len, column)) for column in zip(columns[1:], *cells, strict=True))
    width = min(max(console.out.width - others - 3, SHORTEST_PATH), LONGEST_PATH)
    return columns, [(short_path(source.path, width), *row) for source, row in zip(report.sources, cells, strict=True)]


def _mixed(report: DataReport) -> list[SourceReport]:
    """Sources that share their part with others."""
    parts = [source.part for source in report.sources]
    return [source for source in report.sources if parts.count(source.part) > 1]


def _mix(report: DataReport) -> Table:
    rows: list[tuple[str, ...]] = [
        (short_path(source.path), source.part, f"{source.share_of_rows:.1%}", f"{source.share_of_tokens:.1%}")
        for source in _mixed(report)
    ]
    return ("mix", "part", "of the rows", "of the tokens"), rows


def _facts(report: DataReport) -> dict[str, str]:
    facts = {"train": f"{rows_in_words(report.num_train)} an epoch"}
    if report.num_tokens:
        share = _share(report.num_trained_tokens, report.num_tokens)
        facts["train"] += f", {report.num_tokens:,} tokens, {report.num_trained_tokens:,} of them trained ({share})"
    facts["eval"] = rows_in_words(report.num_eval) if report.num_eval else "none"
    if report.packing and report.num_packed_rows:
        filled = f"{report.fill:.1%} of their places hold a token"
        facts["packing"] = f"{rows_in_words(report.num_packed_rows)} of {report.max_length:,} tokens, {filled}"
    facts["checked in"] = f"{report.seconds:.1f} s"
    return facts


def _show_finding(found: Finding) -> None:
    """The problem of the first row, and the remedy; nothing where the table says it all."""
    if not (found.text or found.hint):
        return
    console.result("")
    console.result(Text(found.what, style="bold"))
    if found.text:
        place = f"{found.first}: " if found.first else ""
        _print(Text(visible(place + found.text)), indent="  ")
    if found.hint:
        _print(Text.assemble(("hint: ", "cyan"), visible(found.hint)), indent="  ")


def _print(text: Text, indent: str = "") -> None:
    """A line of prose: broken at words in a terminal, one line in a pipe."""
    if not console.out.is_terminal:
        console.result(Text(indent) + text)
        return
    width = min(TEXT_WIDTH, console.out.width) - len(indent)
    lines = textwrap.wrap(text.plain, max(width, 20), break_long_words=False, break_on_hyphens=False)
    start = 0
    for line in lines:
        start = text.plain.index(line, start)
        console.result(Text(indent) + text[start : start + len(line)])


def short_path(path: str, width: int = LONGEST_PATH) -> str:
    """The end of a long path.

    >>> short_path("/data/projects/a/train.jsonl", width=14)
    '…a/train.jsonl'
    """
    path = visible(path)
    return path if len(path) <= width else f"…{path[1 - width :]}"


def _counted(found: Finding) -> str:
    return f"{found.what} ({rows_in_words(found.num_rows)})" if found.num_rows else visible(found.text)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0%"
