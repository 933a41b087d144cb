"""Small pieces of the pages: sections, tables, lists of facts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from qlora_cli.web_page import text_as_html

SIGNS = {"better": "▲", "worse": "▼"}
OPEN_SIGN = "○"
"""No evidence."""


def section(title: str, body: str, *, anchor: str = "") -> str:
    """A heading and what stands below it."""
    name = f' id="{anchor}"' if anchor else ""
    return f"<section{name}>\n<h2>{text_as_html(title)}</h2>\n{body}\n</section>"


def card(body: str) -> str:
    """A framed part."""
    return f'<div class="card">{body}</div>'


def missing(text: str) -> str:
    """A framed sentence about what there is not."""
    return card(f'<p class="none">{prose(text)}</p>')


def prose(text: str) -> str:
    """Plain text as HTML, with what stands in back-ticks as code.

    >>> prose("run `qlora eval <run>`")
    'run <code>qlora eval &lt;run&gt;</code>'
    """
    return re.sub("`([^`]+)`", r"<code>\1</code>", text_as_html(text))


def facts_table(facts: Mapping[str, str]) -> str:
    """Label and value, one pair a line."""
    rows = "".join(
        f'<tr><th scope="row">{text_as_html(name)}</th><td>{text_as_html(value)}</td></tr>'
        for name, value in facts.items()
    )
    return f'<table class="of-facts">{rows}</table>'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain text, which becomes a list of blocks on a phone."""
    head = "".join(f"<th>{text_as_html(name)}</th>" for name in columns)
    body = "".join(
        "<tr>"
        + f'<th scope="row">{text_as_html(row[0])}</th>'
        + "".join(
            f'<td data-name="{text_as_html(name)}">{text_as_html(cell)}</td>'
            for name, cell in zip(columns[1:], row[1:], strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f'<table class="stack"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def sign(outcome: object) -> str:
    """A mark for an outcome, which says it by shape and colour; the words stand beside it."""
    kind = outcome if outcome in SIGNS else "open"
    return f'<span class="sign {kind}" aria-hidden="true">{SIGNS.get(str(outcome), OPEN_SIGN)}</span>'
