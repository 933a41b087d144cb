"""Rows that repeat others, over all sources of a recipe, in the order in which they are read."""

from __future__ import annotations

from array import array
from typing import Literal

import numpy as np

from qlora_cli.data.duplicates import NearDuplicates
from qlora_cli.data.example import Place
from qlora_cli.data.rejection import RejectionReason
from qlora_cli.data.report import Finding

DedupeMode = Literal["exact", "near"]


class DuplicateIndex:
    """Every kept row so far, by its text; finds the first row that a new one repeats.

    About 180 bytes a row, and those of the index of near duplicates.
    """

    def __init__(self, kind: DedupeMode | None) -> None:
        self._numbers: dict[bytes, int] = {}
        self._near = NearDuplicates() if kind == "near" else None
        self._roots = {"exact": array("q"), "near": array("q")}
        self._files: dict[str, int] = {}
        self._places = array("q")  # number of the file, line (0 for none) and row, of each kept row

    def see(self, digest: bytes, signature: bytes | None) -> tuple[RejectionReason, int] | None:
        """The kept row that the next one repeats, and how; a row that repeats none is remembered."""
        next_number = len(self._roots["exact"])
        number = self._numbers.get(digest)
        if number is not None:
            return RejectionReason.EXACT_DUPLICATE, number
        similar = self._near.add(signature, next_number) if self._near and signature is not None else None
        if similar is not None:
            return RejectionReason.NEAR_DUPLICATE, similar
        self._numbers[digest] = next_number
        return None

    def keep(self, digest: bytes, place: Place, repeated: tuple[RejectionReason, int] | None) -> None:
        """Count the row that `see` has just looked at among those kept."""
        number = len(self._roots["exact"])
        cause, original = repeated or (None, number)
        exact, near = self._roots["exact"], self._roots["near"]
        exact.append(exact[original] if cause == RejectionReason.EXACT_DUPLICATE else number)
        near.append(near[original] if cause else number)
        self._numbers.setdefault(digest, number)
        file = self._files.setdefault(place.file, len(self._files))
        self._places.extend((file, place.line or 0, place.row))

    def place(self, number: int) -> Place:
        """Of a kept row."""
        file, line, row = self._places[3 * number : 3 * number + 3]
        return Place(list(self._files)[file], line or None, row)

    def findings(self, in_train: np.ndarray, in_eval: np.ndarray) -> list[Finding]:
        """Repeated rows among those kept: within the training rows, and of held-out rows in them.

        Args:
            in_train: whether each kept row is trained on.
            in_eval: whether it is held out.
        """
        findings = []
        exact, near = (np.frombuffer(roots, np.int64) for roots in self._roots.values())
        for name, roots, others in (("exact", exact, None), ("near", near, exact)):
            within = _beyond_first(roots, in_train)
            across = in_eval & np.isin(roots, roots[in_train])
            if others is not None:  # equal rows were reported already
                within &= ~_beyond_first(others, in_train)
                across &= ~np.isin(others, others[in_train])
            for rows, what in (
                (within, f"{name} duplicates in train"),
                (across, f"held-out rows with {'an exact' if name == 'exact' else 'a near'} duplicate in train"),
            ):
                if rows.any():
                    hint = f"`data.clean.dedupe: {name}` keeps the first of them"
                    findings.append(
                        Finding(what, "noted", int(rows.sum()), str(self.place(int(rows.argmax()))), "", hint)
                    )
        return findings


def _beyond_first(roots: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Of the chosen rows, those that are not the first of their root.

    >>> _beyond_first(np.array([0, 0, 2, 0]), np.array([False, True, True, True])).tolist()
    [False, False, False, True]
    """
    numbers = np.flatnonzero(chosen)
    _, first = np.unique(roots[numbers], return_index=True)
    beyond = chosen.copy()
    beyond[numbers[first]] = False
    return beyond
