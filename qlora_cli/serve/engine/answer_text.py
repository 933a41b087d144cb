"""The text of an answer as it becomes certain: whole characters, and nothing that may still become a stop text."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from qlora_cli.serve.decoding import StreamDecoder, length_of_start
from qlora_cli.serve.engine.requests import Piece, TokenLogprob

Scored = tuple[TokenLogprob, tuple[TokenLogprob, ...]]
"""A token and its alternatives."""


@dataclass
class _Token:
    scored: Scored
    start: int
    """Characters of the answer before the token's text."""

    end: int | None = None
    """Characters up to its end; None while its character is incomplete."""


class AnswerText:
    """Turns tokens into pieces, one by one, and finds stop texts wherever the borders of tokens fall."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...]) -> None:
        self.is_stopped = False
        """Whether a stop text has been met; nothing may be pushed after it."""

        self._decoder = StreamDecoder(tokenizer)
        self._stop = tuple(text for text in stop if text)
        self._held = ""
        self._num_released = 0
        self._tokens: list[_Token] = []

    def push(self, token_id: int, scored: Scored | None) -> Piece | None:
        """What becomes certain with this token.

        Args:
            token_id: the token.
            scored: the token with its alternatives; None where no log-probabilities are wanted.
        """
        if scored is not None:
            self._tokens.append(_Token(scored, self._num_released + len(self._held)))
        return self._take(self._decoder.push(token_id))

    def finish(self) -> Piece | None:
        """The rest, where no token follows."""
        if self.is_stopped:
            return None
        piece = self._take(self._decoder.finish())
        if self.is_stopped:
            return piece
        text = (piece.text if piece else "") + self._held
        scored = [*(zip(piece.tokens, piece.alternatives, strict=True) if piece else ()), *self._rest()]
        self._held = ""
        return _piece(text, scored)

    def _rest(self) -> list[Scored]:
        rest, self._tokens = self._tokens, []
        return [token.scored for token in rest]

    def _take(self, text: str) -> Piece | None:
        if not text:
            return None
        self._held += text
        for token in self._tokens:
            if token.end is None:
                token.end = self._num_released + len(self._held)
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        self.is_stopped = bool(found)
        num_doubtful = max((length_of_start(self._held, stop) for stop in self._stop), default=0)
        return self._release(min(found) if found else len(self._held) - num_doubtful)

    def _release(self, num_characters: int) -> Piece | None:
        text, self._held = self._held[:num_characters], self._held[num_characters:]
        self._num_released += num_characters
        if self.is_stopped:
            scored = [token.scored for token in self._tokens if token.start < self._num_released]
            self._tokens = []
        else:
            is_out = [token.end is not None and token.end <= self._num_released for token in self._tokens]
            scored = [token.scored for token, out in zip(self._tokens, is_out, strict=True) if out]
            self._tokens = [token for token, out in zip(self._tokens, is_out, strict=True) if not out]
        return _piece(text, scored)


def _piece(text: str, scored: list[Scored]) -> Piece | None:
    if not text and not scored:
        return None
    return Piece(text, tuple(token for token, _ in scored), tuple(alternatives for _, alternatives in scored))
