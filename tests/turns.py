"""Pairs of parameters of which `make test` takes a sample and `make torture` all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest


def in_turn(names: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """Each name with each other; all but one other a name, taken in turn, are marked `torture`.

    >>> [pair.values for pair in in_turn(["a", "b", "c"], [1, 2]) if not pair.marks]
    [('a', 1), ('b', 2), ('c', 1)]
    """
    return [
        pytest.param(name, other, marks=[] if at % len(others) == number else pytest.mark.torture, id=f"{name}-{other}")
        for at, name in enumerate(names)
        for number, other in enumerate(others)
    ]
