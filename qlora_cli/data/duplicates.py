"""Equal and nearly equal rows.

Rows are nearly equal when they share most of their five-word shingles: Jaccard similarity of the two sets from 0.8,
estimated by MinHash (Broder 1997, "On the resemblance and containment of documents"; the five words as in Lee et al.
2021, arXiv:2107.06499). System and developer turns do not count: one long system prompt in every row would make all
rows alike.

A signature is small enough to be sent between processes and kept for every row: 16 keys of 4 bytes, each over 8 of
the 128 minima, by which similar rows are found, and one byte of each minimum, by which the similarity is estimated
(Li & König 2010, "b-Bit Minwise Hashing"). Two rows of similarity s have a key in common with probability
1 - (1 - s^8)^16:

    similarity    0.5     0.6     0.7     0.8     0.9
    compared      0.06    0.24    0.61    0.95    1.00

Keys are kept in a sorted array: with the bytes of the minima 264 bytes a row (and 25 MB), twice that for a moment while
new keys are merged in. `datasketch.MinHashLSH` takes 3.7 kB a row for 9 keys of 13 minima, which is its choice for this
threshold and finds 0.4 of the pairs of similarity 0.8.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from array import array
from collections.abc import Iterator
from zlib import crc32

import numpy as np

from qlora_cli.data.example import Example, Message, PlainText
from qlora_cli.data.read.messages import REASONING_FIELDS

THRESHOLD = 0.8
"""Jaccard similarity from which rows count as nearly equal."""

NUM_SHINGLE_WORDS = 5
"""Texts of fewer words have no signature: they have equals, but no near ones."""

NUM_MINIMA = 128
NUM_KEYS = 16

NUM_EQUAL_OCTETS = math.ceil(NUM_MINIMA * (THRESHOLD + (1 - THRESHOLD) / 256))
"""Bytes that rows of the threshold share: those of equal minima, and one in 256 of the others by chance."""

NUM_RECENT_ROWS = 8192
"""Rows whose keys are in a dict, of 3 kB a row, before they are merged into the sorted array."""

MAX_COMPARED = 2048
"""Rows that a row is compared with, those first that share most keys: rows made from one pattern share some with all
others."""

_HALF, _LOW_HALF = np.uint64(32), np.uint64(0xFFFFFFFF)

_NUM_MINIMA_A_KEY = NUM_MINIMA // NUM_KEYS

# Words are between spaces. Scripts that write none (Chinese, Japanese, Thai, Lao, Burmese, Khmer) give a word a
# character, so that their shingles are five characters.
_UNSPACED = "".join(
    f"{first}-{last}"
    for first, last in (
        ("\u0e00", "\u0eff"),  # Thai, Lao
        ("\u1000", "\u109f"),  # Burmese
        ("\u1780", "\u17ff"),  # Khmer
        ("\u3040", "\u30ff"),  # kana
        ("\u31f0", "\u31ff"),
        ("\u3400", "\u4dbf"),  # Chinese characters
        ("\u4e00", "\u9fff"),
        ("\uf900", "\ufaff"),
        ("\U00020000", "\U0003ffff"),
    )
)
_WORD = re.compile(f"[{_UNSPACED}]|[^\\s{_UNSPACED}]+")

_READ_KEYS = ("role", "content", "name", "train", "weight", *REASONING_FIELDS)
_CONTEXT_ROLES = frozenset({"system", "developer"})


def exact_digest(example: Example) -> bytes:
    """16 bytes that are the same for rows of the same turns and tools, wherever they are.

    Numbers that only identify a row, such as the `id` of a message or of a tool call, do not count.
    """
    if isinstance(example, PlainText):
        parts: list[object] = [example.prompt, example.completion]
    else:
        parts = [[_read_by_templates(message) for message in example.messages], example.tools]
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _read_by_templates(message: Message) -> list[object]:
    read: list[object] = [message.get(key) for key in _READ_KEYS]
    if "tool_calls" in message:
        read.append([call["function"] for call in message["tool_calls"]])
    return read


def words_of(text: str) -> list[str]:
    """The words that shingles are made of, lower-cased; a character each in scripts without spaces.

    >>> words_of("The mean of 3+4 is 3.5.")
    ['the', 'mean', 'of', '3+4', 'is', '3.5.']
    >>> words_of("天空 is blue")
    ['天', '空', 'is', 'blue']
    """
    text = text.lower()
    return text.split() if text.isascii() else _WORD.findall(text)


class MinHasher:
    """Makes signatures."""

    def __init__(self) -> None:
        from datasketch import MinHash  # takes 0.4 s, for scipy; only recipes that look for near duplicates pay it

        self._empty = MinHash(NUM_MINIMA, seed=1, scheme="affine32", hashfunc=int)
        random = np.random.default_rng(1)
        self._word_factors = random.integers(1 << 63, dtype=np.uint64, size=NUM_SHINGLE_WORDS) * 2 + 1
        self._key_factors = random.integers(1 << 63, dtype=np.uint64, size=(NUM_KEYS, _NUM_MINIMA_A_KEY)) * 2 + 1

    def signature(self, example: Example) -> bytes | None:
        """192 bytes that are alike for similar texts; None for a text of fewer than five words."""
        words = words_of("\n".join(_texts(example)))
        if len(words) < NUM_SHINGLE_WORDS:
            return None
        sketch = self._empty.copy()
        shingles = self._shingles(words)
        for start in range(0, len(shingles), 1024):  # 128 minima of each at a time, so that they stay in the cache
            sketch.update_batch(shingles[start : start + 1024].tolist())
        minima = sketch.hashvalues
        keys = (minima.reshape(NUM_KEYS, _NUM_MINIMA_A_KEY) * self._key_factors).sum(axis=1) >> np.uint64(32)
        # All bits of a minimum are mixed into the byte: on their own, its highest are zeros, and its lowest depend on
        # the lowest bits of the shingle alone.
        octets = (minima * np.uint32(0x9E3779B1)) >> np.uint32(24)
        return keys.astype(np.uint32).tobytes() + octets.astype(np.uint8).tobytes()

    def _shingles(self, words: list[str]) -> np.ndarray:
        """A hash of each five words in a row: (words - 4,) of 32 bits, each once."""
        hashes = np.array([crc32(word.encode("utf-8", "surrogatepass")) for word in words], np.uint64)
        num_shingles = len(words) - NUM_SHINGLE_WORDS + 1
        mixed = np.zeros(num_shingles, np.uint64)
        for at, factor in enumerate(self._word_factors):
            mixed += hashes[at : at + num_shingles] * factor
        return mixed >> np.uint64(32)


def _texts(example: Example) -> Iterator[str]:
    if isinstance(example, PlainText):
        yield from (example.prompt, example.completion)
        return
    for message in example.messages:
        if message["role"] not in _CONTEXT_ROLES:
            yield from (message[key] for key in ("content", *REASONING_FIELDS) if isinstance(message.get(key), str))
            for call in message.get("tool_calls", ()):
                yield json.dumps(call["function"], ensure_ascii=False, default=str)


class NearDuplicates:
    """The rows so far, and which of them a new one nearly equals."""

    def __init__(self) -> None:
        self._numbers = array("q")  # as the caller counts; rows are counted from 0 here
        self._octets = bytearray()  # NUM_MINIMA of each row
        self._recent: dict[int, list[int]] = {}  # key -> rows that have it; moved to _sorted from time to time
        self._sorted = np.zeros(0, np.uint64)  # key << 32 | row, ascending

    def add(self, signature: bytes, number: int) -> int | None:
        """The number of the first row that this one nearly equals; where there is none, it is added itself.

        A row that repeats another is not added, so the rows that stay are each unlike all others.
        """
        keys = np.frombuffer(signature, np.uint32, NUM_KEYS)
        octets = signature[keys.nbytes :]
        candidates = self._with_a_key_of(keys)
        if candidates:
            similar = self._first_similar(candidates, octets)
            if similar is not None:
                return self._numbers[similar]
        row = len(self._numbers)
        for key in keys.tolist():
            self._recent.setdefault(key, []).append(row)
        self._numbers.append(number)
        self._octets += octets
        if len(self._numbers) % NUM_RECENT_ROWS == 0:
            self._move_recent()
        return None

    def _with_a_key_of(self, keys: np.ndarray) -> list[int]:
        """Rows that share a key, once for each."""
        found = [row for key in keys.tolist() if key in self._recent for row in self._recent[key]]
        lowest = keys.astype(np.uint64) << _HALF
        starts = np.searchsorted(self._sorted, lowest)
        ends = np.searchsorted(self._sorted, lowest | _LOW_HALF, side="right")
        for at in np.flatnonzero(starts < ends):
            found += (self._sorted[starts[at] : ends[at]] & _LOW_HALF).tolist()
        return found

    def _first_similar(self, candidates: list[int], octets: bytes) -> int | None:
        rows, num_shared = np.unique(np.array(candidates, np.int64), return_counts=True)
        if len(rows) > MAX_COMPARED:
            rows = np.sort(rows[np.argsort(-num_shared, kind="stable")[:MAX_COMPARED]])
        theirs = np.frombuffer(self._octets, np.uint8).reshape(-1, NUM_MINIMA)[rows]
        num_equal = (theirs == np.frombuffer(octets, np.uint8)).sum(axis=1)
        similar = rows[num_equal >= NUM_EQUAL_OCTETS]
        return int(similar[0]) if len(similar) else None

    def _move_recent(self) -> None:
        pairs = (key << 32 | row for key, rows in self._recent.items() for row in rows)
        moved = np.fromiter(pairs, np.uint64, NUM_KEYS * NUM_RECENT_ROWS)
        self._sorted = np.sort(np.concatenate((self._sorted, np.sort(moved))), kind="stable")  # merges two runs
        self._recent.clear()
