"""The frame of every page: one HTML file that loads nothing, runs no script but its own, and follows the screen."""

from __future__ import annotations

import base64
import hashlib
from html import escape

from qlora_cli.visible_text import visible

GENERATOR = '<meta name="generator" content="qlora">'
"""In the head of each page; a page without it is somebody else's."""

PAPER = """\
:root { color-scheme: light dark; --ink: #1f2328; --calm: #59636e; --paper: #fff; --line: #d1d9e0; --edge: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --calm: #9aa4af; --paper: #0d1117; --line: #30363d; --edge: #161b22; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.25rem 1.25rem 3rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.25rem; overflow-wrap: anywhere; }
"""
"""Colours of paper, ink and lines in light and dark; each page adds its own."""


def text_as_html(text: str) -> str:
    """Text that no browser reads as anything but text, with nothing in it that cannot be seen or encoded.

    >>> text_as_html("<b>\\x1b")
    '&lt;b&gt;\\\\x1b'
    """
    return escape(visible(text), quote=True)


def script_policy(script: str) -> str:
    """The Content-Security-Policy of a page with one script: it runs that one, and asks its own server alone."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; connect-src 'self'"


def document(title: str, style: str, body: str, *, refresh_seconds: int | None = None, script: str = "") -> str:
    """A whole page.

    Args:
        title: plain text.
        style: CSS, laid over `PAPER`.
        body: HTML in which everything from outside is escaped already.
        refresh_seconds: after which the browser loads the page again; None for a page that stays.
        script: JavaScript at the end of the page; without one nothing runs.
    """
    policy = script_policy(script) if script else "default-src 'none'; style-src 'unsafe-inline'"
    run = f"<script>{script}</script>\n" if script else ""
    refresh = "" if refresh_seconds is None else f'<meta http-equiv="refresh" content="{refresh_seconds}">\n'
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        # Even if the escaping had a hole, the browser would load and run nothing.
        f"""<meta http-equiv="Content-Security-Policy" content="{policy}">\n"""
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{GENERATOR}\n{refresh}<title>{text_as_html(title)}</title>\n<style>\n{PAPER}{style}</style>\n</head>\n"
        f"<body>\n{body}\n{run}</body>\n</html>\n"
    )
