"""Token rows as a person reads them in a terminal: what is trained in green, special tokens in bold."""

from __future__ import annotations

from rich.text import Text
from transformers import PreTrainedTokenizerBase

from qlora_cli.data.token_pieces import LINE_END, Piece, pieces_of, runs_of, visible
from qlora_cli.data.token_row import TokenRow

CONTEXT_STYLE = "dim"
TRAINED_STYLE = "green"
SPECIAL_STYLE = "bold"


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

    Where a character is spread over several tokens, it stands at the last of them and the others show `…`.
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
