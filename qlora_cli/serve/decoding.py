"""Tokens to text while they arrive, one by one."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from qlora_cli.constants import REPLACEMENT


def length_of_start(text: str, mark: str) -> int:
    """How many characters at the end of `text` may be the start of `mark`, which is not in it as a whole.

    >>> length_of_start("so be it</th", "</think>"), length_of_start("so", "</think>")
    (4, 0)
    """
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:size])), 0)


class StreamDecoder:
    """Turns token ids into text that can be printed immediately: never half a character.

    A character may take several tokens, and a tokenizer may print a token differently at the start of a text than
    inside it. So each token is decoded together with the ones before it, and what they add is the new text; the
    window starts again whenever the text is complete, which keeps the cost of a token constant.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []  # tokens of the last piece, already printed
        self._pending: list[int] = []  # tokens whose text is not printed yet

    def push(self, token_id: int) -> str:
        """The text that becomes certain with this token; empty while a character is incomplete."""
        self._pending.append(token_id)
        text = self._new_text()
        if not text or text.endswith(REPLACEMENT):
            return ""
        self._context, self._pending = self._pending, []
        return text

    def finish(self) -> str:
        """The rest when no token follows, without the bytes of a character that was never completed."""
        text = self._new_text().rstrip(REPLACEMENT)
        self._context, self._pending = [], []
        return text

    def _new_text(self) -> str:
        before = self._decode(self._context)
        return self._decode(self._context + self._pending)[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text
