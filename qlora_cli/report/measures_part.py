"""The comparison in figures: each measure of each model, the difference with its interval, and the interval drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qlora_cli.report.axis import Axis, figure
from qlora_cli.report.curve import is_number
from qlora_cli.report.html import card, missing, sign
from qlora_cli.report.record import RunRecord
from qlora_cli.web_page import text_as_html

Object = Mapping[str, Any]
SPAN_WIDTH, SPAN_HEIGHT = 190, 22


def objects(value: Any) -> list[Object]:
    """The JSON objects of a list; empty for anything else."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def not_measured(record: RunRecord) -> str:
    """What to type where nothing was measured."""
    return f"not measured yet: `qlora eval {record.path}`"


def measures(record: RunRecord) -> str:
    """The table; a sentence where nothing was measured."""
    rows = objects(record.results.get("measures"))
    if not rows:
        return missing(not_measured(record))
    names = _model_names(record.results, rows)
    verdicts = objects(record.results.get("verdicts"))
    heads = "".join(f'<th class="num">{text_as_html(name)}</th>' for name in names)
    body = "".join(line for row in rows for line in _lines(row, names, verdicts))
    rules = "".join(f"<p>{text_as_html(rule)}</p>" for rule in _rules(rows))
    return card(
        f'<table class="stack"><thead><tr><th>measure</th>{heads}<th class="num">difference</th>'
        f"<th>95% interval</th><th>verdict</th></tr></thead><tbody>{body}</tbody></table>"
        f'<div class="note">{rules}</div>'
    )


def _model_names(results: Object, rows: Sequence[Object]) -> list[str]:
    """Models in the order of the results; those that only a measure names come last."""
    names = [str(model.get("name")) for model in objects(results.get("models"))]
    for row in rows:
        values = row.get("values")
        names += [name for name in (values if isinstance(values, dict) else ()) if name not in names]
    return names


def _rules(rows: Sequence[Object]) -> list[str]:
    """How each measure is scored, each said once."""
    told = [
        f"{row.get('task')}, {row.get('measure')}: {row['rule']}" for row in rows if isinstance(row.get("rule"), str)
    ]
    return list(dict.fromkeys(told))


def _lines(row: Object, names: Sequence[str], verdicts: Sequence[Object]) -> Iterator[str]:
    """The line of a measure, with a line more for each further comparison of it."""
    values = row.get("values")
    values = values if isinstance(values, dict) else {}
    source = row.get("source")
    label = f"{row.get('task')} · {row.get('measure')}" + (f" · {source}" if source else "")
    cells = "".join(
        f'<td class="num" data-name="{text_as_html(name)}">{_value(values.get(name), row)}</td>' for name in names
    )
    found = [
        verdict
        for verdict in verdicts
        if not source and (verdict.get("task"), verdict.get("measure")) == (row.get("task"), row.get("measure"))
    ]
    first, *others = found or [{}]
    yield f'<tr><th scope="row">{text_as_html(label)}</th>{cells}{_verdict(first, row, len(found) > 1)}</tr>'
    for verdict in others:
        empty = '<td class="num"></td>' * len(names)
        yield f'<tr><th scope="row"></th>{empty}{_verdict(verdict, row, True)}</tr>'


def _value(value: Any, row: Object) -> str:
    """A model's figure with its interval below."""
    if not isinstance(value, dict) or not is_number(value.get("value")):
        return "not measured"
    told = measured(value["value"], row.get("unit"))
    if is_number(value.get("low")) and is_number(value.get("high")):
        low, high = (measured(value[key], row.get("unit")) for key in ("low", "high"))
        return f'{told}<br><span class="calm">{low} to {high}</span>'
    return told


def measured(value: float, unit: Any) -> str:
    """A figure in its unit.

    >>> measured(0.5, "share"), measured(1.23456, "nats")
    ('50.0%', '1.235')
    """
    return f"{value * 100:.1f}%" if unit == "share" else f"{value:.3f}" if abs(value) < 100 else figure(value)


def _verdict(verdict: Object, row: Object, names_models: bool) -> str:
    """Difference, interval drawn, and the verdict in a word."""
    difference, low, high = (verdict.get(key) for key in ("difference", "low", "high"))
    if not (is_number(difference) and is_number(low) and is_number(high)):
        return '<td class="num"></td><td class="span"></td><td></td>'
    outcome = str(verdict.get("outcome"))
    kind = outcome if outcome in ("better", "worse") else "open"
    told = _signed(difference, row.get("unit"))
    interval = f"{_signed(low, row.get('unit'))} to {_signed(high, row.get('unit'))}"
    who = f"{verdict.get('model')} against {verdict.get('against')}: " if names_models else ""
    return (
        f'<td class="num" data-name="difference">{told}<br><span class="calm">{interval}</span></td>'
        f'<td class="span {kind}">{interval_plot(difference, low, high, interval)}</td>'
        f'<td class="whole">{sign(kind)} {text_as_html(who + outcome)}</td>'
    )


def _signed(value: float, unit: Any) -> str:
    return f"{value * 100:+.1f}%" if unit == "share" else f"{value:+.3f}"


def interval_plot(difference: float, low: float, high: float, told: str) -> str:
    """An interval around its difference, with a dashed line at zero; drawn to its own scale."""
    reach = max(abs(low), abs(high), abs(difference)) * 1.1 or 1.0
    x = Axis(-reach, reach, 4, SPAN_WIDTH - 4)
    middle = SPAN_HEIGHT / 2
    return (
        f'<svg viewBox="0 0 {SPAN_WIDTH} {SPAN_HEIGHT}" role="img" aria-label="{text_as_html(told)}">'
        f'<line class="zero" x1="{x.place(0):.1f}" x2="{x.place(0):.1f}" y1="1" y2="{SPAN_HEIGHT - 1}"/>'
        f'<line class="whisker" x1="{x.place(low):.1f}" x2="{x.place(high):.1f}" y1="{middle}" y2="{middle}"/>'
        f'<circle class="mean" cx="{x.place(difference):.1f}" cy="{middle}" r="4"/></svg>'
    )
