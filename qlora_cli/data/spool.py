"""Token rows on disk while they come in: flat files that grow, and are then looked into as arrays.

A row is a span of the two token files; what else is known of it is in one table of numbers. Nothing is held in
memory, so a spool may be larger than it.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from qlora_cli.constants import IGNORE_INDEX
from qlora_cli.data.token_row import TokenRow

TOKEN = np.dtype(np.int32)
ROW = np.dtype(
    [
        ("num_tokens", np.int32),
        ("num_trained_tokens", np.int32),
        ("line", np.int64),  # 0 where the source has no lines
        ("row", np.int64),
        ("file", np.int32),  # position in the list of file names
        ("digest", np.uint64, (2,)),  # of the tokens: equal rows have equal ones
    ]
)


@dataclass(frozen=True)
class TokenBatch:
    """Some rows, as workers hand them over."""

    input_ids: np.ndarray
    """Tokens of all rows, one after the other, of dtype TOKEN."""

    labels: np.ndarray
    rows: np.ndarray
    """One record of dtype ROW a row."""

    def only(self, chosen: np.ndarray) -> TokenBatch:
        """The rows where the boolean array `chosen` is true."""
        if chosen.all():
            return self
        of_tokens = np.repeat(chosen, self.rows["num_tokens"])
        return TokenBatch(self.input_ids[of_tokens], self.labels[of_tokens], self.rows[chosen])


def batch_of(rows: Sequence[TokenRow], file_numbers: Sequence[int], digests: Sequence[bytes]) -> TokenBatch:
    """Rows as a batch."""
    table = np.zeros(len(rows), ROW)
    table["num_tokens"] = [len(row.input_ids) for row in rows]
    table["num_trained_tokens"] = [row.num_trained_tokens for row in rows]
    table["line"] = [row.place.line or 0 for row in rows]
    table["row"] = [row.place.row for row in rows]
    table["file"] = file_numbers
    table["digest"] = np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)
    num_tokens = int(table["num_tokens"].sum())
    input_ids = np.fromiter(chain.from_iterable(row.input_ids for row in rows), TOKEN, num_tokens)
    labels = np.fromiter(chain.from_iterable(row.labels for row in rows), TOKEN, num_tokens)
    return TokenBatch(input_ids, labels, table)


class Spool:
    """Rows written to a folder one batch after the other, then read by number."""

    def __init__(self, folder: Path) -> None:
        self._paths = {name: folder / f"{name}.bin" for name in ("input_ids", "labels", "rows")}
        self._files = {name: path.open("wb") for name, path in self._paths.items()}

    def append(self, batch: TokenBatch) -> None:
        """Write a batch behind the others."""
        for name, file in self._files.items():
            file.write(np.ascontiguousarray(getattr(batch, name)).view(np.uint8).data)  # `tofile` hides why it fails

    def close(self) -> None:
        """End writing; the rows can be read now."""
        for file in self._files.values():
            file.close()
        self.rows = _mapped(self._paths["rows"], ROW)
        """One record of dtype ROW a row."""
        self._input_ids = _mapped(self._paths["input_ids"], TOKEN)
        self._labels = _mapped(self._paths["labels"], TOKEN)
        ends = np.cumsum(self.rows["num_tokens"], dtype=np.int64)
        self._starts = ends - self.rows["num_tokens"]

    def tokens(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and labels of the rows of these numbers, one after the other."""
        return self._spans(self._starts[numbers], self.rows["num_tokens"][numbers])

    def spans(self, numbers: np.ndarray, firsts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and labels of parts of rows, one after the other; what begins a part carries no label.

        Args:
            numbers: of the rows.
            firsts: token of each row with which its part begins.
            lengths: tokens of each part, at least 1.
        """
        input_ids, labels = self._spans(self._starts[numbers] + firsts, lengths)
        labels[np.cumsum(lengths, dtype=np.int64) - lengths] = IGNORE_INDEX
        return input_ids, labels

    def _spans(self, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lengths = lengths.astype(np.int64)
        ends = np.cumsum(lengths)
        positions = np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)
        input_ids, labels = self._input_ids[positions], self._labels[positions]
        for mapped in (self._input_ids, self._labels):
            _let_go(mapped)
        return input_ids, labels

    def delete(self) -> None:
        """Remove the files; arrays that were read stay valid."""
        for path in self._paths.values():
            path.unlink(missing_ok=True)


def _let_go(mapped: np.ndarray) -> None:
    """Take the pages that were read out of this process; the system keeps them or not, as it has room."""
    memory: object = mapped.base
    if isinstance(memory, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        memory.madvise(mmap.MADV_DONTNEED)


def _mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)
