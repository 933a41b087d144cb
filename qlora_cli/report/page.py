"""The report of a run: one page, from the verdict down to the commands that do it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qlora_cli.report.advice.advice import Advice
from qlora_cli.report.advice_part import advice_cards
from qlora_cli.report.answers_part import samples
from qlora_cli.report.axis import figure
from qlora_cli.report.curves_part import curves
from qlora_cli.report.data_part import data
from qlora_cli.report.health_part import health
from qlora_cli.report.html import card, missing, prose, section, sign
from qlora_cli.report.measures_part import measures, not_measured, objects
from qlora_cli.report.record import RunRecord
from qlora_cli.report.setup_part import duration, method, setup
from qlora_cli.report.style import STYLE
from qlora_cli.web_page import document, text_as_html

STATUS_IN_WORDS = {"died": "ended by an error or a kill", "stopped": "stopped, can be resumed"}


def page(record: RunRecord, found: Sequence[Advice], *, refresh_seconds: int | None = None) -> str:
    """The page's HTML.

    Args:
        record: the run.
        found: advice on it.
        refresh_seconds: after which a browser loads the page again; None for a page that stays.
    """
    parts = (
        _head(record),
        section("Verdict", _verdict(record, found), anchor="verdict"),
        section("Curves", curves(record)),
        section("Data", data(record)),
        *_evaluation(record),
        section("Setup", setup(record)),
        section("What to change", advice_cards(record, found), anchor="advice"),
        _foot(record),
    )
    return document(f"{record.name}: report", STYLE, "\n".join(parts), refresh_seconds=refresh_seconds)


def _evaluation(record: RunRecord) -> list[str]:
    """The parts that `qlora eval` adds; one sentence where it has not run."""
    if not (record.results or record.answers or record.health):
        told = "adds answers before and after, each measure with its interval, and the modules of the adapter."
        return [section("Evaluation", missing(f"`qlora eval {record.path}` {told}"))]
    return [
        section("Before and after", samples(record)),
        section("Comparison", measures(record)),
        section("Adapter", health(record)),
    ]


def _head(record: RunRecord) -> str:
    base = record.section("base").get("base_model") or record.recipe.get("model.base_model")
    steps = f"{record.num_steps:,}"
    if record.max_steps is not None:
        steps += f" of {record.max_steps:,}"
    evals = record.curve("eval_loss")
    facts = {
        "status": STATUS_IN_WORDS.get(record.status, record.status),
        "base": _short(str(base)) if base else "",
        "method": method(record),
        "steps": steps,
        "epochs": "" if record.epochs is None else figure(record.epochs),
        "best eval loss": f"{evals.lowest[1]:.4f}" if len(evals) else "",
        "time": duration(record),
        "started": str(record.manifest.get("started_at", ""))[:16].replace("T", " "),
    }
    shown = "".join(
        f"<li><span>{text_as_html(name)}</span><b>{text_as_html(value)}</b></li>"
        for name, value in facts.items()
        if value
    )
    return (
        f'<header><p class="eyebrow">qlora report</p><h1>{text_as_html(record.name)}</h1>'
        f'<ul class="facts">{shown}</ul></header>'
    )


def _verdict(record: RunRecord, found: Sequence[Advice]) -> str:
    """The sentences of the evaluation, and how much there is to change."""
    verdicts = [each for each in objects(record.results.get("verdicts")) if isinstance(each.get("sentence"), str)]
    lines = [f"<li>{sign(each.get('outcome'))}<span>{text_as_html(_sentence(each))}</span></li>" for each in verdicts]
    if not lines:
        lines = [f"<li>{sign(None)}<span>{prose(not_measured(record))}</span></li>"]
    if found:
        titles = "; ".join(each.title.lower() for each in found)
        lines.append(f'<li><span class="sign open">→</span><a href="#advice">{text_as_html(titles)}</a></li>')
    return card(f'<div class="verdict"><ul>{"".join(lines)}</ul></div>')


def _sentence(verdict: Mapping[str, Any]) -> str:
    """What was measured, and what it says."""
    measure = str(verdict.get("measure")).replace("_", " ")
    return f"{verdict.get('task')}, {measure}: {verdict['sentence']}"


def _foot(record: RunRecord) -> str:
    gaps = "".join(f"<li>{text_as_html(gap)}</li>" for gap in record.gaps)
    listed = f"<p>Left out:</p><ul>{gaps}</ul>" if gaps else ""
    return (
        f"<footer>{listed}<p>Made by qlora from {text_as_html(str(record.path))}. The page loads nothing.</p></footer>"
    )


def _short(base: str) -> str:
    """A Hub id, or the last part of a folder's path."""
    return Path(base).name if Path(base).is_absolute() else base
