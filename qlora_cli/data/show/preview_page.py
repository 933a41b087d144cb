"""Previews as one HTML page: nothing is loaded from elsewhere and nothing in it runs, whatever the data says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from qlora_cli.data.show.preview import ShownRow
from qlora_cli.data.show.token_pieces import Piece, pieces_of
from qlora_cli.data.token_row import TokenRow
from qlora_cli.errors import ArgumentError
from qlora_cli.run.files import refuse_foreign_page, write_text
from qlora_cli.visible_text import LINE_END
from qlora_cli.web_page import document, text_as_html

NUM_TOKENS_OPEN = 600
"""Longer examples are folded when the page opens."""

NUM_TOKENS_DRAWN = 20_000
"""A page of millions of tokens would not open; what is not drawn is counted."""

NUM_CHARS_OF_FOLDED = 160

STYLE = """\
:root { --trained: #0a4f24; --trained-paper: #d3f5dc; --mark: #9a3412; --point: #fff3b0; }
@media (prefers-color-scheme: dark) {
  :root { --trained: #a6f0b8; --trained-paper: #123420; --mark: #ffa657; --point: #5c4a00; }
}
body { max-width: 70rem; padding-top: 1rem; }
header { position: sticky; top: 0; padding-bottom: .5rem; background: var(--paper);
  border-bottom: 1px solid var(--line); }
header p { margin: .25rem 0 0; color: var(--calm); }
.legend > span { display: inline-block; margin-right: .75rem; padding: 0 .4rem; }
details { margin-top: 1rem; border: 1px solid var(--line); border-radius: 6px; }
summary { padding: .5rem .75rem; background: var(--edge); border-radius: 6px; cursor: pointer;
  overflow-wrap: anywhere; }
summary small { margin-left: .5rem; font-size: .9rem; color: var(--calm); }
.start { display: block; color: var(--calm); overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
details[open] .start { display: none; }
.mark { margin-left: .5rem; color: var(--mark); font-style: normal; }
.why, .hint { margin: .5rem .75rem 0; overflow-wrap: anywhere; }
.why { color: var(--mark); }
pre { margin: 0; padding: .75rem; font: 14px/1.75 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.c { color: var(--calm); }
.t { color: var(--trained); background: var(--trained-paper); padding-bottom: 2px;
  border-bottom: 1.5px solid var(--trained); }
s { text-decoration: none; }
b { border: 1px solid currentcolor; border-radius: 3px; padding: 0 1px; }
i { opacity: .55; font-style: normal; }
[data-i]:hover { background: var(--point); color: var(--ink); }
[data-i]:hover::after { content: attr(data-i); position: fixed; left: 0; bottom: 0; padding: .25rem .75rem;
  background: var(--edge); color: var(--ink); border: 1px solid var(--line); font: 14px/1.5 system-ui, sans-serif; }
"""
"""What is trained is green and underlined, so that it is seen without colour too."""


def write_page(path: Path, title: str, shown: Sequence[ShownRow], tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the page.

    Raises:
        ArgumentError: if the name is not that of a page, or another file has it.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise ArgumentError(f"'{path}' does not end in .html", hint=f"try `--html {path.with_suffix('.html')}`")
    refuse_foreign_page(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page(title, shown, tokenizer), is_content=True)


def page(title: str, shown: Sequence[ShownRow], tokenizer: PreTrainedTokenizerBase) -> str:
    """The page's HTML."""
    num = f"{len(shown):,} row{'s' * (len(shown) != 1)}"
    body = "\n".join(
        (
            f"<header><h1>{text_as_html(title)}</h1><p>{num}. Point at a token to see its id and its position.</p>",
            '<p class="legend"><span class="t">trained</span> <span class="c">read, not trained</span> '
            f'<span class="c"><b>special token</b></span> <span class="c"><i>{LINE_END}</i> line end</span></p>',
            "</header>",
            *(_section(row, tokenizer) for row in shown),
        )
    )
    return document(title, STYLE, body)


def _section(shown: ShownRow, tokenizer: PreTrainedTokenizerBase) -> str:
    is_open = " open" if shown.row is None or len(shown.row.input_ids) <= NUM_TOKENS_OPEN else ""
    start = ""
    if not is_open and shown.row is not None:
        start_ids = shown.row.input_ids[:NUM_CHARS_OF_FOLDED]
        text = str(tokenizer.decode(start_ids, skip_special_tokens=True))[:NUM_CHARS_OF_FOLDED]
        start = f'<span class="start">{text_as_html(" ".join(text.split()))} …</span>'
    mark = f'<em class="mark">{text_as_html(shown.mark)}</em>' if shown.mark else ""
    lines = [
        f"<details{is_open}><summary><strong>{text_as_html(str(shown.place))}</strong> "
        f"<small>{text_as_html(shown.counts)}</small>{mark}{start}</summary>"
    ]
    if shown.rejection is not None:
        lines.append(f'<p class="why">{text_as_html(shown.rejection.text)}</p>')
        if shown.rejection.hint:
            lines.append(f'<p class="hint">hint: {text_as_html(shown.rejection.hint)}</p>')
    lines.append(
        f"<pre>{text_as_html(shown.as_read)}</pre>"
        if shown.row is None
        else f"<pre>{_tokens(shown.row, tokenizer)}</pre>"
    )
    return "\n".join((*lines, "</details>"))


def _tokens(row: TokenRow, tokenizer: PreTrainedTokenizerBase) -> str:
    drawn = TokenRow(row.input_ids[:NUM_TOKENS_DRAWN], row.labels[:NUM_TOKENS_DRAWN], row.place)
    pieces = pieces_of(drawn, tokenizer)
    html = "".join(_runs(pieces))
    num_left = len(row.input_ids) - len(drawn.input_ids)
    return html + f'<em class="mark">and {num_left:,} more tokens, not drawn</em>' * (num_left > 0)


def _runs(pieces: Iterable[Piece]) -> Iterator[str]:
    for is_trained, run in groupby(pieces, key=lambda piece: piece.is_trained):
        yield f'<span class="{"t" if is_trained else "c"}">{"".join(map(_token, run))}</span>'


def _token(piece: Piece) -> str:
    ids = " ".join(map(str, piece.input_ids))
    last = piece.start + len(piece.input_ids) - 1
    position = f"{piece.start}" if last == piece.start else f"{piece.start}-{last}"
    name = "b" if piece.is_special else "s"
    return f'<{name} data-i="id {ids} at {position}">{_text(piece.text)}</{name}>'


def _text(text: str) -> str:
    return text_as_html(text).replace("\n", f"<i>{LINE_END}</i>\n").replace("\t", "<i>⇥</i>\t")
