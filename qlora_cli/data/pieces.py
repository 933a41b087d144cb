"""Running text longer than a row, as pieces of `max_length` tokens: each token of a document in exactly one of them.

The tokens that begin and end a document are at its begin and end alone, so the model learns neither to start nor to
stop in the middle of one. The first token of a piece carries no label, since nothing in its row predicts it:

    max_length 4     <s> The cat sat on the mat . </s>
                 ->  <s> The cat sat | on the mat . | </s>           a last piece of one token would teach nothing,
                 ->  <s> The cat sat | on the mat | . </s>           so the one before it gives it another

The spool keeps whole documents: duplicates, held-out rows and shares are counted in documents, and none is trained on
and held out in parts.
"""

from __future__ import annotations

import numpy as np

from qlora_cli.data.spool import Spool


def cut_lengths(num_tokens: np.ndarray, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each piece of some documents, one document after the other, and how many pieces each has.

    >>> lengths, num_pieces = cut_lengths(np.array([9, 8, 3]), 4)
    >>> lengths.tolist(), num_pieces.tolist()
    ([4, 3, 2, 4, 4, 3], [3, 2, 1])
    """
    num_tokens = num_tokens.astype(np.int64)
    num_pieces = -(-num_tokens // max_length)
    lengths = np.full(num_pieces.sum(), max_length, np.int64)
    last = np.cumsum(num_pieces) - 1
    lengths[last] = num_tokens - (num_pieces - 1) * max_length
    alone = last[(lengths[last] == 1) & (num_pieces > 1)]
    lengths[alone] += 1
    lengths[alone - 1] -= 1
    return lengths, num_pieces


class Pieces:
    """The rows of a spool, those longer than `max_length` in pieces; reads like a spool."""

    def __init__(self, spool: Spool, max_length: int) -> None:
        """
        Args:
            spool: closed.
            max_length: tokens of a piece, at least 2.
        """
        self._spool = spool
        lengths, num_pieces = cut_lengths(spool.rows["num_tokens"], max_length)
        self._first = np.concatenate(([0], np.cumsum(num_pieces)))
        self._document = np.repeat(np.arange(len(num_pieces)), num_pieces)
        starts = np.cumsum(lengths) - lengths
        self._start = starts - np.repeat(starts[self._first[:-1]], num_pieces)
        self.rows = spool.rows[self._document]
        """One record a piece; `digest` is that of its document."""

        # All of a split document has a label but what its beginning adds to the text: one token, and seldom more.
        num_untrained = spool.rows["num_tokens"] - spool.rows["num_trained_tokens"] - 1
        is_split = num_pieces > 1
        trained = np.where(np.repeat(is_split, num_pieces), lengths - 1, self.rows["num_trained_tokens"])
        trained[self._first[:-1][is_split]] -= num_untrained[is_split]
        self.rows["num_tokens"], self.rows["num_trained_tokens"] = lengths, trained

    def of(self, documents: np.ndarray) -> np.ndarray:
        """Numbers of all pieces of some documents of the spool, in their order."""
        counts = self._first[documents + 1] - self._first[documents]
        ends = np.cumsum(counts)
        return np.repeat(self._first[documents] - (ends - counts), counts) + np.arange(ends[-1] if len(ends) else 0)

    def tokens(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and labels of the pieces of these numbers, one after the other."""
        return self._spool.spans(self._document[numbers], self._start[numbers], self.rows["num_tokens"][numbers])
