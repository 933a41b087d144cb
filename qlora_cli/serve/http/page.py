"""The chat page: one file that asks this server alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qlora_cli.web_page import document, script_policy, text_as_html

FOLDER = Path(__file__).parent
BASE = "base"


@dataclass(frozen=True)
class ChatPage:
    """A page and what a browser may do for it."""

    html: str
    policy: str
    """Content-Security-Policy, also sent as a header."""


def chat_page(names: Sequence[str], *, has_key: bool) -> ChatPage:
    """The page.

    Args:
        names: of models; the first one and the base stand side by side.
        has_key: whether the page asks for an API key.
    """
    script = (FOLDER / "chat_page.js").read_text("utf-8")
    style = (FOLDER / "chat_page.css").read_text("utf-8")
    left = names[0]
    right = BASE if BASE in names and left != BASE else names[-1]
    panels = "\n".join(_panel(number, names, chosen) for number, chosen in enumerate((left, right)))
    key = '<label class="key">API key <input id="key" type="password" autocomplete="off"></label>' if has_key else ""
    body = f"""\
<header><h1>qlora</h1>{key}
<label>temperature <input id="temperature" type="number" min="0" max="2" step="0.1" value="0"></label>
<label>tokens <input id="tokens" type="number" min="1" value="512"></label>
<label><input id="both" type="checkbox"{" checked" if len(names) > 1 else ""}> side by side</label>
<button id="reset" type="button">start over</button></header>
<main>
{panels}
</main>
<form id="ask">
<textarea id="prompt" rows="2" placeholder="Ask" aria-label="Your turn" required></textarea>
<button id="send" type="submit">send</button><button id="stop" type="button" disabled>stop</button>
</form>"""
    return ChatPage(document("qlora", style, body, script=script), script_policy(script))


def _panel(number: int, names: Sequence[str], chosen: str) -> str:
    options = "".join(
        f'<option value="{text_as_html(name)}"{" selected" if name == chosen else ""}>{text_as_html(name)}</option>'
        for name in names
    )
    return (
        f'<section class="panel"><select aria-label="model {number + 1}">{options}</select>'
        '<div class="turns" aria-live="polite"></div></section>'
    )
