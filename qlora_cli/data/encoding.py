"""Text to tokens with the place of each span, so that a prompt's tokens are what inference would send.

A row is tokenized once. Only where a token lies across the start of a trained span (the prompt's last characters
merged with the answer's first) is the row cut there and its pieces tokenized apart: at inference the prompt ends at
that cut, so its tokens must too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from qlora_cli.data.traced_template import Span
from qlora_cli.errors import DataError

MAX_SPACES = 32
"""Characters before a span that are looked at for spaces."""


@dataclass(slots=True)
class Encoded:
    """A text as tokens."""

    input_ids: list[int]
    spans: list[Span]
    """The asked-for spans, in tokens."""


class Encoder:
    """Tokenizes texts that already hold their special tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """
        Raises:
            DataError: a tokenizer without character offsets.
        """
        if not tokenizer.is_fast:
            raise DataError(
                f"{type(tokenizer).__name__} gives no character offsets, so answers cannot be told from prompts",
                hint="use a base model that ships a tokenizer.json (a fast tokenizer)",
            )
        self._backend = tokenizer.backend_tokenizer
        self.prefix_ids = _prefix_ids(tokenizer)
        """What the tokenizer puts before plain text by itself: the beginning-of-sequence token, or nothing."""
        newline, letter, both = (self._ids(text) for text in ("\n", "a", "\na"))
        self._newline_ids = newline
        self._ids_of_spaces: dict[str, list[int]] = {}
        self._marks_word_starts = both != newline + letter  # SentencePiece: a text's first word gets a space

    def encode(self, texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> list[Encoded]:
        """Tokens of each text, and each of its character spans in tokens.

        A token that lies across the end of a span belongs to it.
        """
        self._backend.no_truncation()
        self._backend.no_padding()
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        encoded = []
        for text, encoding, text_spans in zip(texts, encodings, spans, strict=True):
            if any(self._is_merged(encoding, text, start) for start, _ in text_spans):
                encoded.append(self._encode_pieces(text, text_spans))
            else:
                token_spans = [
                    (_token_at(encoding, start, len(text)), _token_at(encoding, end, len(text)))
                    for start, end in text_spans
                ]
                encoded.append(Encoded(encoding.ids, token_spans))
        return encoded

    def _is_merged(self, encoding: Encoding, text: str, start: int) -> bool:
        """Whether what follows `start` changed the tokens before it."""
        if start in (0, len(text)):
            return False
        token = encoding.char_to_token(start)
        if token is not None and _first_character(encoding, token) < start:
            return True
        before = text[max(0, start - MAX_SPACES) : start]
        spaces = before[len(before.rstrip()) :]
        if spaces in ("", "\n"):
            return False
        # A word takes the last of the spaces before it ("a  b" is "a", " ", " b"; in GPT-2 also "\n\n" falls apart).
        # No border between tokens shows that, and some tokenizers do not count such a space among a token's offsets.
        if spaces not in self._ids_of_spaces:
            self._ids_of_spaces[spaces] = self._ids(spaces)
        ids = self._ids_of_spaces[spaces]
        return token is None or encoding.ids[max(0, token - len(ids)) : token] != ids

    def _encode_pieces(self, text: str, spans: Sequence[Span]) -> Encoded:
        """Tokens of the text, cut at the start of each span."""
        starts = [start for start, _ in spans]
        input_ids = self._ids(text[: starts[0]])
        token_spans = []
        for (start, end), next_start in zip(spans, [*starts[1:], len(text)], strict=True):
            num_tokens_before = len(input_ids)
            piece_ids, num_span_tokens = self._continue(text[start:next_start], end - start)
            input_ids += piece_ids
            token_spans.append((num_tokens_before, num_tokens_before + num_span_tokens))
        return Encoded(input_ids, token_spans)

    def _continue(self, piece: str, end: int) -> tuple[list[int], int]:
        """Tokens of a piece from the middle of a text, and how many of them its first `end` characters take."""
        if self._marks_word_starts:
            # After a line end the piece's first word is no start of text, and gets no space of its own.
            encoding = self._backend.encode("\n" + piece, add_special_tokens=False)
            num_newline_ids = len(self._newline_ids)
            if encoding.ids[:num_newline_ids] == self._newline_ids:
                num_span_tokens = _token_at(encoding, end + 1, len(piece) + 1) - num_newline_ids
                return encoding.ids[num_newline_ids:], num_span_tokens
        encoding = self._backend.encode(piece, add_special_tokens=False)
        return encoding.ids, _token_at(encoding, end, len(piece))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids


def _prefix_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    with_special = tokenizer("a", add_special_tokens=True)["input_ids"]
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    before = next(at for at in range(len(with_special)) if with_special[at : at + len(plain)] == plain)
    return list(with_special[:before])


def _token_at(encoding: Encoding, character: int, num_characters: int) -> int:
    """Index of the first token that starts at `character` or later, or the number of tokens."""
    for position in range(character, num_characters):
        token = encoding.char_to_token(position)
        if token is not None:  # some tokenizers count the space before a word to no token
            return token + 1 if _first_character(encoding, token) < character else token
    return len(encoding.ids)


def _first_character(encoding: Encoding, token: int) -> int:
    characters = encoding.token_to_chars(token)
    assert characters is not None  # the token was found by one of its characters
    return characters[0]
