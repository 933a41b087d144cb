"""What was trained on: lengths of the rows, and the first rows with what of them is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qlora_cli.report.axis import Axis, value_axis
from qlora_cli.report.curve import is_number
from qlora_cli.report.html import card, facts_table, missing
from qlora_cli.report.plot import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from qlora_cli.report.record import RunRecord
from qlora_cli.web_page import text_as_html

MAX_PIECE_CHARS = 20_000


def data(record: RunRecord) -> str:
    """The histogram beside the figures, and the rows below."""
    report = record.data_report
    if not report:
        return missing("data/report.json is not there: this run was made by an earlier version, or has not begun.")
    lengths = report.get("lengths")
    bins = _bins(lengths.get("histogram")) if isinstance(lengths, dict) else []
    drawing = histogram(bins, report.get("max_length")) if bins else missing("No row could be rendered.")
    facts = card(facts_table(_facts(report)))
    return f'<div class="two wide">{drawing}{facts}</div>{_rows(record)}'


Bin = tuple[float, float, float]


def _bins(values: Any) -> list[Bin]:
    rows = values if isinstance(values, list) else []
    return [tuple(row) for row in rows if isinstance(row, list) and len(row) == 3 and all(map(is_number, row))]


def histogram(bins: Sequence[Bin], max_length: Any) -> str:
    """Bars of rows over tokens, with a line at the longest that is trained."""
    limit = float(max_length) if is_number(max_length) else None
    reach = max(bins[-1][1], limit or 0)
    x = Axis(bins[0][0], max(reach, bins[0][0] + 1) * 1.02, LEFT, WIDTH - RIGHT)
    y = value_axis([count for _, _, count in bins], HEIGHT - BOTTOM, TOP, from_zero=True)
    total = sum(count for _, _, count in bins)
    return (
        '<figure class="plot bars"><figcaption><b>Length of the rows</b> <span>tokens</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="histogram of {total:,.0f} rows over their tokens">'
        f"{''.join(_bars(bins, limit, x, y))}</svg></figure>"
    )


def _bars(bins: Sequence[Bin], limit: float | None, x: Axis, y: Axis) -> Iterator[str]:
    for value in y.ticks():
        place = y.place(value)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>'
        yield f'<text x="{LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{value:,.0f}</text>'
    for value in x.ticks():
        yield f'<text x="{x.place(value):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{value:,.0f}</text>'
    for first, end, count in bins:
        left, right, top = x.place(first), x.place(end), y.place(count)
        yield (
            f'<rect class="bar" x="{left + 0.5:.1f}" y="{top:.1f}" width="{max(right - left - 1, 0.5):.1f}" '
            f'height="{HEIGHT - BOTTOM - top:.1f}"/><g><rect x="{left:.1f}" y="0" width="{right - left:.1f}" '
            f'height="{HEIGHT - BOTTOM}"/><text x="{WIDTH - RIGHT}" y="12" text-anchor="end">'
            f"{first:,.0f} to {end - 1:,.0f} tokens: {count:,.0f} rows</text></g>"
        )
    if limit is not None:
        place = x.place(limit)
        yield f'<line class="level" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        yield (
            f'<text class="level-text" x="{place - 4:.1f}" y="{TOP + 10}" text-anchor="end">'
            f"max_length {limit:,.0f}</text>"
        )


def _facts(report: Mapping[str, Any]) -> dict[str, str]:
    def number(key: str) -> str:
        value = report.get(key)
        return f"{value:,}" if is_number(value) else "not recorded"

    facts = {"training rows": number("num_train"), "held-out rows": number("num_eval"), "tokens": number("num_tokens")}
    tokens, trained = report.get("num_tokens"), report.get("num_trained_tokens")
    if is_number(tokens) and is_number(trained) and tokens:
        facts["of them trained"] = f"{trained:,} ({trained / tokens:.0%})"
    if report.get("packing") is True and is_number(report.get("fill")):
        facts["packed rows"] = f"{number('num_packed_rows')}, {report['fill']:.0%} filled"
    findings = report.get("findings")
    for found in findings if isinstance(findings, list) else ():
        if isinstance(found, dict):
            count = found.get("num_rows")
            told = f"{count:,} rows" if is_number(count) else ""
            facts[str(found.get("what"))] = f"{told}, {found.get('verdict')}"
    return facts


def _rows(record: RunRecord) -> str:
    """The first rows as they are trained; what is trained is coloured and underlined."""
    rows = record.first_rows.get("rows")
    shown = [_row(row) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    if not shown:
        return missing("Rows with their mask are not stored by this run: `qlora data show RECIPE` prints them.")
    legend = '<p class="note row"><span class="t">trained</span> <span class="c">read, not trained</span></p>'
    first, *others = shown
    more = f"<details><summary>{len(others)} more</summary>{''.join(others)}</details>" if others else ""
    return f'<div class="card row"><h3>A row as it is trained</h3>{legend}{first}{more}</div>'


def _row(row: Mapping[str, Any]) -> str:
    pieces = row.get("pieces")
    html = []
    for piece in pieces if isinstance(pieces, list) else ():
        if not isinstance(piece, dict):
            continue
        text = text_as_html(str(piece.get("text"))[:MAX_PIECE_CHARS])
        text = f"<b>{text}</b>" if piece.get("is_special") is True else text
        html.append(f'<span class="{"t" if piece.get("is_trained") is True else "c"}">{text}</span>')
    place = text_as_html(str(row.get("place", "")))
    return f'<p class="note">{place}</p><pre>{"".join(html)}</pre>'
