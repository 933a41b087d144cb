"""What to change next, each with the figures that led to it."""

from __future__ import annotations

from collections.abc import Sequence

from qlora_cli.report.advice.advice import Advice
from qlora_cli.report.html import card, missing, prose
from qlora_cli.report.record import RunRecord
from qlora_cli.web_page import text_as_html


def advice_cards(record: RunRecord, found: Sequence[Advice]) -> str:
    """One card a piece of advice; a sentence where the curves show nothing."""
    if not found:
        if not record.lines:
            return missing("There are no curves to read yet.")
        return missing("Nothing stands out in the curves: no divergence, no overfitting, no memory that ran out.")
    return "".join(_card(each) for each in found)


def _card(advice: Advice) -> str:
    changes = "".join(f"<code>{text_as_html(str(change))}</code>" for change in advice.changes)
    return card(
        f'<div class="advice"><h3>{text_as_html(advice.title)}</h3><dl>'
        f"<dt>seen</dt><dd>{text_as_html(advice.figures)}</dd>"
        f"<dt>do</dt><dd>{prose(advice.remedy)}</dd>"
        f'<dt>change</dt><dd class="changes">{changes}</dd></dl></div>'
    )
