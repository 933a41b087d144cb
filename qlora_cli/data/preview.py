"""One token row as a person reads it: what is trained in green, special tokens in bold."""

from __future__ import annotations

from itertools import groupby

from rich.text import Text
from transformers import PreTrainedTokenizerBase

from qlora_cli.data.token_row import IGNORE_INDEX, TokenRow

CONTEXT_STYLE = "dim"
TRAINED_STYLE = "green"
SPECIAL_STYLE = "bold"


def show_example(row: TokenRow, tokenizer: PreTrainedTokenizerBase, *, with_brackets: bool = False) -> Text:
    """The row's text; trained tokens are green, the rest is dim, special tokens are bold.

    Neighbours of one kind are decoded together: a character may be spread over several tokens.

    Args:
        row: one document.
        tokenizer: the one that made it.
        with_brackets: put trained text between ⟦ and ⟧ too, for where no colour is seen.
    """
    special = tokenizer.added_tokens_decoder
    text = Text()

    def kind(at: int) -> tuple[bool, bool]:
        return row.labels[at] != IGNORE_INDEX, row.input_ids[at] in special

    was_trained = False
    for (is_trained, is_special), positions in groupby(range(len(row.input_ids)), key=kind):
        piece = tokenizer.decode(
            [row.input_ids[at] for at in positions], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        if with_brackets and is_trained != was_trained:
            text.append("⟦" if is_trained else "⟧")
        was_trained = is_trained
        style = TRAINED_STYLE if is_trained else CONTEXT_STYLE
        text.append(piece, style=f"{SPECIAL_STYLE} {style}" if is_special else style)
    if with_brackets and was_trained:
        text.append("⟧")
    return text
