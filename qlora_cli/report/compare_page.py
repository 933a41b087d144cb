"""Runs laid over each other on one page: curves, differences, and what their answers show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qlora_cli.errors import ArgumentError
from qlora_cli.report.axis import figure
from qlora_cli.report.compare import COLUMNS, Comparison, compare_runs
from qlora_cli.report.curves_part import three_digits
from qlora_cli.report.html import card, missing, section, sign, table
from qlora_cli.report.measures_part import interval_plot
from qlora_cli.report.plot import Look, Plot, Series, draw
from qlora_cli.report.record import RunRecord, read_record
from qlora_cli.report.style import STYLE
from qlora_cli.report.write import check_page
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.files import write_text
from qlora_cli.web_page import document, text_as_html

SAME_QUESTIONS = (
    "No two of these runs were measured on the same rows or questions: `qlora eval RUN` for each, with the same files."
)


def read_and_compare(runs: Sequence[RunDirectory], out: Path | None = None) -> Comparison:
    """Read the runs, compare them, and write the page.

    Args:
        runs: two directories at least.
        out: the page; `compare.html` beside the first run when None.

    Raises:
        ArgumentError: if there are fewer than two, one of them is none, or the page cannot have that name.
    """
    if len(runs) < 2:
        named = f" '{runs[0].path}'" if runs else ""
        raise ArgumentError(
            f"there is only one run to compare{named}" if runs else "no run is named",
            hint="name two or more: `qlora compare RUN RUN`; `qlora runs` lists them",
        )
    path = runs[0].path.parent / "compare.html" if out is None else out
    check_page(path)
    records = [read_record(run) for run in runs]
    comparison = compare_runs(records)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, compare_page(records, comparison), is_content=True)
    return replace(comparison, page=path)


def compare_page(records: Sequence[RunRecord], comparison: Comparison) -> str:
    """The page's HTML."""
    names = [line.run for line in comparison.runs]
    head = f'<header><p class="eyebrow">qlora compare</p><h1>{text_as_html(" · ".join(names))}</h1></header>'
    parts = (
        head,
        section("Verdicts", _verdicts(comparison)),
        section("Runs", card(table(COLUMNS, [line.cells() for line in comparison.runs]))),
        section("Curves", f'<div class="grid-of laid">{_curves(records, names)}</div>'),
        section("What differs", _differences(comparison, names)),
        "<footer><p>Made by qlora. The page loads nothing.</p></footer>",
    )
    return document(f"{', '.join(names)}: comparison", STYLE, "\n".join(parts))


def _verdicts(comparison: Comparison) -> str:
    if not comparison.verdicts:
        return missing(SAME_QUESTIONS)
    items = []
    for each in comparison.verdicts:
        found = each.verdict
        told = f"{each.run} against {each.against}, {each.task} ({each.measure}): {found.sentence}"
        apart = f" {each.num_apart:,} questions or rows that only one has are left out." if each.num_apart else ""
        interval = f"{found.difference:+.3f}, 95% interval {found.low:+.3f} to {found.high:+.3f}"
        drawing = interval_plot(found.difference, found.low, found.high, interval)
        kind = found.outcome if found.outcome in ("better", "worse") else "open"
        items.append(
            f"<li>{sign(found.outcome)}<div>{text_as_html(told + apart)}"
            f'<div class="{kind} span">{drawing}</div></div></li>'
        )
    return card(f'<div class="verdict"><ul>{"".join(items)}</ul></div>')


def _curves(records: Sequence[RunRecord], names: Sequence[str]) -> str:
    """Each quantity with one curve a run; losses are smoothed, since steps of several runs hide each other."""
    wanted = (
        ("Training loss", "smoothed, nats a token", "loss", three_digits, False),
        ("Eval loss", "nats a token, held-out rows", "eval_loss", three_digits, False),
        ("Learning rate", "", "learning_rate", figure, True),
        ("Gradient norm", "smoothed", "grad_norm", figure, False),
        ("Speed", "smoothed, tokens a second", "tokens_per_second", figure, True),
    )
    drawn = []
    for title, unit, key, told, from_zero in wanted:
        curves = [record.curve(key) for record in records]
        if unit.startswith("smoothed"):
            curves = [curve.smoothed() for curve in curves]
        look: Look = "dotted" if key == "eval_loss" else "line"
        series = [
            Series(name, curve, number, look) for number, (name, curve) in enumerate(zip(names, curves, strict=True))
        ]
        drawn.append(draw(Plot(title, unit, series, from_zero=from_zero, format=told, names=names)))
    return "".join(drawn)


def _differences(comparison: Comparison, names: Sequence[str]) -> str:
    if not comparison.differences:
        return missing("Nothing: recipes, data, versions and hardware are the same.")
    rows = [each.cells() for each in comparison.differences]
    return card(table(("key", *names), rows))
