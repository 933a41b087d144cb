"""Positions where a text may be cut in two without changing a token: beside an added token such as `<|im_end|>`.

A tokenizer looks for its added tokens first and tokenizes what is between them apart, so a cut there is one that it
makes itself. Left out are added tokens that take in the spaces beside them, that count only as whole words, that
are looked for after the text is normalized, or that share characters with another added token.
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer


class SafeCuts:
    """Tells the safe places in one tokenizer's texts."""

    def __init__(self, backend: Tokenizer) -> None:
        added: list[AddedToken] = list(backend.get_added_tokens_decoder().values())
        self._contents = [token.content for token in added]
        plain = [token for token in added if _is_plain(token)]
        self._endings = frozenset(token.content for token in plain if not token.rstrip)
        self._beginnings = frozenset(token.content for token in plain if not token.lstrip)
        self._lengths = sorted({len(token.content) for token in plain})
        self._stands_alone: dict[str, bool] = {}

    def is_safe(self, text: str, at: int) -> bool:
        """Whether the text may be cut before character `at`.

        >>> from tokenizers import models
        >>> backend = Tokenizer(models.BPE())
        >>> _ = backend.add_special_tokens(["<|end|>"])
        >>> [at for at in range(11) if SafeCuts(backend).is_safe("Hi<|end|>!", at)]
        [0, 2, 9, 10]
        """
        if at in (0, len(text)):
            return True
        for length in self._lengths:
            before, after = text[max(0, at - length) : at], text[at : at + length]
            if before in self._endings and self._is_alone(before):
                return True
            if after in self._beginnings and self._is_alone(after):
                return True
        return False

    def _is_alone(self, token: str) -> bool:
        known = self._stands_alone.get(token)
        if known is None:
            known = self._stands_alone[token] = not any(_may_hide(other, token) for other in self._contents)
        return known


def _is_plain(token: AddedToken) -> bool:
    content = token.content
    return bool(content) and content == content.strip() and not (token.normalized or token.single_word)


def _may_hide(other: str, token: str) -> bool:
    """Whether an added token can cross an edge of this one, or around it, and so be found in its place.

    >>> _may_hide("<|end|>", "<|im_end|>"), _may_hide("end|><|", "<|im_end|>"), _may_hide("<|im_end|>!", "<|im_end|>")
    (False, True, True)
    """
    if other != token and token in other:
        return True
    sizes = range(1, min(len(token), len(other)))
    return any(token[:size] == other[-size:] or token[-size:] == other[:size] for size in sizes)
