"""Parameters of which `make test` takes a sample and `make torture` all."""

from __future__ import annotations

from collections import Counter
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


def take_every(items: Sequence[pytest.Item]) -> None:
    """Of a test that is marked `every(n)`, mark all parameters but each n-th `torture`, beginning with the first."""
    num_seen: Counter[str] = Counter()
    for item in items:
        mark = item.get_closest_marker("every")
        if mark is not None and item.get_closest_marker("torture") is None:
            function = item.nodeid.partition("[")[0]
            if num_seen[function] % mark.args[0]:
                item.add_marker("torture")
            num_seen[function] += 1
