"""Token rows as a person reads them in a terminal: what is trained in green, special tokens in bold."""

from __future__ import annotations

import json
from dataclasses import dataclass

from rich.text import Text
from transformers import PreTrainedTokenizerBase

from qlora_cli.data.example import Place
from qlora_cli.data.rejection import Rejection
from qlora_cli.data.show.token_pieces import Piece, pieces_of, runs_of
from qlora_cli.data.token_row import TokenRow
from qlora_cli.visible_text import LINE_END, visible

CONTEXT_STYLE = "dim"
TRAINED_STYLE = "green"
SPECIAL_STYLE = "bold"
MARK_STYLE = "yellow"

NUM_CHARS_AS_READ = 2000
"""More of a row that cannot be rendered is not shown."""


@dataclass(frozen=True)
class ShownRow:
    """One row of a recipe's data and what becomes of it."""

    place: Place
    row: TokenRow | None
    """As it is trained on, or in full where it is only too long; None where it cannot be rendered or is taken out."""

    rejection: Rejection | None = None
    mark: str = ""
    """Fate of the row, where it is not simply trained on."""

    @property
    def counts(self) -> str:
        """Its tokens in words; empty where it has none."""
        if self.row is None:
            return ""
        return f"{len(self.row.input_ids):,} tokens, {self.row.num_trained_tokens:,} of them trained"

    @property
    def as_read(self) -> str:
        """A rejected row as it is in its source, cut where it is very long."""
        row = self.rejection.row if self.rejection else ""
        text = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False, indent=2, default=str)
        num_more = len(text) - NUM_CHARS_AS_READ
        return text if num_more <= 0 else f"{text[:NUM_CHARS_AS_READ]} … and {num_more:,} characters more"


def show_row(
    shown: ShownRow, tokenizer: PreTrainedTokenizerBase, *, with_ids: bool = False, with_brackets: bool = False
) -> Text:
    """A row under its place, its counts and what happens to it: as text, token by token, or as it was read."""
    text = Text()
    text.append(visible(str(shown.place)), style="bold")
    text.append(f" · {shown.counts}" * bool(shown.counts))
    text.append(f" · {shown.mark}" * bool(shown.mark), style=MARK_STYLE)
    if shown.rejection is not None:
        text.append(f"\n{visible(shown.rejection.text)}")
        if shown.rejection.hint:
            text.append("\nhint: ", style="cyan").append(visible(shown.rejection.hint))
    text.append("\n")
    if shown.row is None:
        return text.append(visible(shown.as_read), style=CONTEXT_STYLE)
    if with_ids:
        return text.append(show_ids(shown.row, tokenizer))
    text.append(show_example(shown.row, tokenizer, with_brackets=with_brackets))
    if text.plain.endswith("\n"):
        text.right_crop(1)
    return text


def show_example(row: TokenRow, tokenizer: PreTrainedTokenizerBase, *, with_brackets: bool = False) -> Text:
    """The row's text; trained tokens are green, the rest is dim, special tokens are bold.

    A line end that closes a trained part is drawn, since nothing else would show that it is trained.

    Args:
        row: one document.
        tokenizer: the one that made it.
        with_brackets: put trained text between ⟦ and ⟧ too, for where no colour is seen.
    """
    text = Text()
    runs = list(runs_of(row, tokenizer))
    for run, before, after in zip(runs, [None, *runs], [*runs[1:], None], strict=False):
        opens = run.is_trained and not (before and before.is_trained)
        closes = run.is_trained and not (after and after.is_trained)
        shown = visible(run.text)
        ends_line = closes and shown.endswith("\n")
        if ends_line:
            shown = shown[:-1] + LINE_END
        if with_brackets:
            shown = "⟦" * opens + shown + "⟧" * closes
        text.append(shown, style=_style(run))
        text.append("\n" * ends_line)
    return text


def show_ids(row: TokenRow, tokenizer: PreTrainedTokenizerBase) -> Text:
    """One line a token: its position, its id, what it is, its text with every space and line end drawn.

    Where a character is spread over several tokens, it is shown at the last of them and the others show `…`.
    """
    id_width = 2 + max(map(len, map(str, row.input_ids)), default=2)
    text = Text()
    text.append(f"{'position':>8}{'id':>{id_width}}  {'':16}  token", style="bold")
    for piece in pieces_of(row, tokenizer):
        last = len(piece.input_ids) - 1
        kind = f"{'trained' if piece.is_trained else '':7}  {'special' if piece.is_special else '':7}"
        for offset, token in enumerate(piece.input_ids):
            shown = visible(piece.text, is_each_seen=True) if offset == last else "…"
            text.append(f"\n{piece.start + offset:>8}{token:>{id_width}}  ", style=CONTEXT_STYLE)
            text.append(f"{kind}  {shown}", style=_style(piece))
    return text


def _style(piece: Piece) -> str:
    style = TRAINED_STYLE if piece.is_trained else CONTEXT_STYLE
    return f"{SPECIAL_STYLE} {style}" if piece.is_special else style
