"""Answers before and after, side by side: some that got better, some that got worse, some that did neither."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qlora_cli.report.curve import is_number
from qlora_cli.report.html import card, missing, sign
from qlora_cli.report.record import RunRecord
from qlora_cli.report.text_difference import marked
from qlora_cli.web_page import text_as_html

NUM_OF_EACH = 2
MAX_CHARS = 3000
"""More of an answer is not shown."""

Row = Mapping[str, Any]
KINDS = ("better", "worse", "open")


def samples(record: RunRecord) -> str:
    """The samples of each task; a sentence where nothing was generated."""
    parts = [_task(name, rows) for name, rows in record.answers.items() if rows]
    if not any(parts):
        return missing("No answers were generated yet: `qlora eval` with a task writes them.")
    return "".join(parts)


def _task(name: str, rows: Sequence[Row]) -> str:
    """A few questions of a task, chosen by how their score changed, the first of each kind."""
    kinds: dict[str, list[Row]] = {kind: [] for kind in KINDS}
    for row in rows:
        if _names(row) is not None:
            kinds[change_of(row)].append(row)
    if not any(kinds.values()):
        return ""
    counts = f"{len(kinds['better']):,} better, {len(kinds['worse']):,} worse, {len(kinds['open']):,} the same"
    chosen = [(kind, row) for kind in KINDS for row in kinds[kind][:NUM_OF_EACH]]
    shown = "".join(_sample(kind, row) for kind, row in chosen)
    return (
        f"<h3>{text_as_html(name)}</h3>"
        f'<p class="note">{len(rows):,} questions: {counts}. The first {NUM_OF_EACH} of each kind.</p>{shown}'
    )


def _names(row: Row) -> tuple[str, str] | None:
    """The two models whose answers are compared: the base and the first other one; None where there are no two."""
    answers = row.get("answers")
    names = list(answers) if isinstance(answers, dict) else []
    if len(names) < 2:
        return None
    before = "base" if "base" in names else names[0]
    return before, next(name for name in names if name != before)


def change_of(row: Row) -> str:
    """better, worse or open, by the first measure that both answers have.

    >>> change_of({"answers": {"base": "1", "tuned": "2"}, "scores": {"exact_match": {"base": 0, "tuned": 1}}})
    'better'
    """
    names, scores = _names(row), row.get("scores")
    if names is None or not isinstance(scores, dict):
        return "open"
    for values in scores.values():
        before, after = (values.get(name) if isinstance(values, dict) else None for name in names)
        if is_number(before) and is_number(after):
            return "better" if after > before else "worse" if after < before else "open"
    return "open"


def _sample(kind: str, row: Row) -> str:
    names = _names(row)
    assert names is not None  # only such rows are chosen
    before, after = (_shortened(row["answers"].get(name)) for name in names)
    words = {"better": "better", "worse": "worse", "open": "the same score"}[kind]
    sides = "".join(
        f"<div><h4>{text_as_html(name)}{text_as_html(_ending(row, name))}</h4><pre>{html or '(empty)'}</pre></div>"
        for name, html in zip(names, marked(before, after), strict=True)
    )
    return card(
        f'<p class="asked">{text_as_html(_prompt(row))}</p><div class="sides">{sides}</div>'
        f'<p class="note">{sign(kind)} {words} · expected: {text_as_html(_shortened(row.get("reference")))}</p>'
    )


def _ending(row: Row, name: str) -> str:
    ended = row.get("ended")
    return ", cut at its length" if isinstance(ended, dict) and ended.get(name) == "length" else ""


def _prompt(row: Row) -> str:
    """The question as text; of a conversation each turn with its role."""
    prompt = row.get("prompt")
    if isinstance(prompt, list):
        turns = [turn for turn in prompt if isinstance(turn, dict)]
        return _shortened("\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in turns))
    return _shortened(prompt)


def _shortened(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]} … and {len(text) - MAX_CHARS:,} characters more"
