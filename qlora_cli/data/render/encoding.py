"""Text to tokens with the place of each span, so that a prompt's tokens are what inference would send.

A text is cut at the start of each trained span and its pieces are tokenized apart: at inference the prompt ends at that
cut, so its tokens must not depend on the answer (whose first characters may merge with the prompt's last). It is also
cut at the end of each span, where that changes no token (`safe_cuts.py`). Then the tokens of a span are those of its
piece, and no token's characters have to be looked up:

    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n | Hello<|im_end|>\\n | <|im_start|>user\\nAnd?...

Where the end of a span is no such place, character offsets show its last token. Tokenizers that a cut would make begin
a new word (SentencePiece gives a text's first word a space) are asked for the whole text, and it is cut only where a
token crosses the start of a span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tokenizers import Encoding, models
from transformers import PreTrainedTokenizerBase

from qlora_cli.data.render.safe_cuts import SafeCuts
from qlora_cli.data.render.special_text import Originals
from qlora_cli.data.render.traced_template import Span
from qlora_cli.errors import DataError

MAX_SPACES = 32
"""Characters before a span that are looked at for spaces."""

_CUTS_TRIED = (("\n", "a"), ("a", " b"), ("a\n", "b"))


@dataclass(slots=True)
class Encoded:
    """A text as tokens."""

    input_ids: list[int]
    spans: list[Span]
    """The asked-for spans, in tokens."""


class Encoder:
    """Tokenizes texts that already hold their special tokens. For one thread at a time."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """
        Raises:
            DataError: a tokenizer without character offsets.
        """
        if not tokenizer.is_fast:
            raise DataError(
                f"{type(tokenizer).__name__} gives no character offsets, so answers cannot be separated from prompts",
                hint="use a base model that ships a tokenizer.json (a fast tokenizer)",
            )
        self._backend = tokenizer.backend_tokenizer
        self._take_texts_whole()
        self._safe_cuts = SafeCuts(self._backend)
        self.prefix_ids = self._prefix_ids()
        """Tokens that the tokenizer puts before plain text by itself: the beginning-of-sequence token, or none."""
        newline, letter, both = (self._ids(text) for text in ("\n", "a", "\na"))
        self._newline_ids = newline
        self._ids_of_spaces: dict[str, list[int]] = {}
        self._marks_word_starts = both != newline + letter  # SentencePiece: a text's first word gets a space
        self._cuts_freely = isinstance(self._backend.model, models.BPE) and all(
            self._ids(head + tail) == self._ids(head) + self._ids(tail) for head, tail in _CUTS_TRIED
        )

    def encode(self, texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> list[Encoded]:
        """Tokens of each text, and each of its character spans in tokens.

        A token that crosses the end of a span belongs to it.

        Args:
            texts: any number of them.
            spans: of each text, in order, none over another.
        """
        self._take_texts_whole()
        if self._cuts_freely:
            return self._encode_by_cutting(texts, spans)
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [
            self._encode_whole(text, text_spans, encoding)
            for text, text_spans, encoding in zip(texts, spans, encodings, strict=True)
        ]

    def _take_texts_whole(self) -> None:
        """Undo what an earlier call of the tokenizer may have left set."""
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = False

    def _encode_by_cutting(self, texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> list[Encoded]:
        """Tokens from pieces that begin and end with the spans."""
        pieces: list[str] = []
        num_pieces: list[int] = []
        for text, text_spans in zip(texts, spans, strict=True):
            text_pieces = self._pieces(text, text_spans)
            pieces += text_pieces
            num_pieces.append(len(text_pieces))
        encodings = self._backend.encode_batch_fast(pieces, add_special_tokens=False)
        encoded = []
        at = 0
        for text, text_spans, number in zip(texts, spans, num_pieces, strict=True):
            encoded.append(_joined(encodings[at : at + number]) if number else self._encode_pieces(text, text_spans))
            at += number
        return encoded

    def _pieces(self, text: str, spans: Sequence[Span]) -> list[str]:
        """The text before each span and the span, in turn, then the rest; nothing where that would change a token."""
        pieces = []
        at = 0
        for start, end in spans:
            if end != len(text) and not self._safe_cuts.is_safe(text, end):
                return []
            pieces.append(text[at:start])
            pieces.append(text[start:end])
            at = end
        if at < len(text) or not pieces:
            pieces.append(text[at:])
        return pieces

    def _encode_whole(self, text: str, spans: Sequence[Span], encoding: Encoding) -> Encoded:
        """Tokens of the whole text, unless one crosses the start of a span."""
        if any(self._is_merged(encoding, text, start) for start, _ in spans):
            return self._encode_pieces(text, spans)
        token_spans = [
            (_token_at(encoding, start, len(text)), _token_at(encoding, end, len(text))) for start, end in spans
        ]
        return Encoded(encoding.ids, token_spans)

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

    def _continue(self, piece: str, end: int, *, is_first: bool = False) -> tuple[list[int], int]:
        """Tokens of a piece from the middle of a text, and how many of them its first `end` characters take."""
        if self._marks_word_starts and not is_first:
            # After a line end the piece's first word is not a start of text, and gets no space of its own.
            encoding = self._backend.encode("\n" + piece, add_special_tokens=False)
            num_newline_ids = len(self._newline_ids)
            if encoding.ids[:num_newline_ids] == self._newline_ids:
                num_span_tokens = _token_at(encoding, end + 1, len(piece) + 1) - num_newline_ids
                return encoding.ids[num_newline_ids:], num_span_tokens
        encoding = self._backend.encode(piece, add_special_tokens=False)
        return encoding.ids, _token_at(encoding, end, len(piece))

    def encode_with_plain_text(
        self, text: str, spans: Sequence[Span], plain: Sequence[Span], originals: Originals
    ) -> Encoded:
        """Tokens of a text of which some stretches are plain text, whatever special tokens they spell.

        Args:
            text: with a stand-in for each special token inside the stretches.
            spans: as in `encode`.
            plain: the stretches.
            originals: what each stand-in stands for.
        """
        self._take_texts_whole()
        cuts = {0, len(text), *(start for start, _ in spans), *(edge for stretch in plain for edge in stretch)}
        ends = {end for _, end in spans}
        input_ids: list[int] = []
        token_at = {}
        for left, right in pairwise(sorted(cuts)):
            token_at[left] = len(input_ids)
            end = next((end for end in ends if left < end < right), right)
            piece, head = text[left:right].translate(originals), text[left:end].translate(originals)
            self._backend.encode_special_tokens = any(start <= left < end for start, end in plain)
            piece_ids, num_head_ids = self._continue(piece, len(head), is_first=left == 0)
            self._backend.encode_special_tokens = False
            if end < right:
                token_at[end] = len(input_ids) + num_head_ids
            input_ids += piece_ids
        token_at[len(text)] = len(input_ids)
        return Encoded(input_ids, [(token_at[start], token_at[end]) for start, end in spans])

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def _prefix_ids(self) -> list[int]:
        with_special = self._backend.encode("a", add_special_tokens=True).ids
        plain = self._ids("a")
        before = next(at for at in range(len(with_special) + 1) if with_special[at : at + len(plain)] == plain)
        return list(with_special[:before])


def _joined(encodings: Sequence[Encoding]) -> Encoded:
    """The tokens of a text from those of its pieces, of which every second is a span."""
    input_ids = encodings[0].ids
    spans = []
    for number in range(1, len(encodings)):
        start = len(input_ids)
        input_ids += encodings[number].ids
        if number % 2:
            spans.append((start, len(input_ids)))
    return Encoded(input_ids, spans)


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
