"""The largest setting that fits a memory, found by a search over traces.

Bytes grow with batch, length and rank nearly in a line, so each guess is where the line through the nearest traced
points crosses the memory. No guess is believed: the answer is a traced value that fits, and the next larger one was
traced and does not fit, or is not allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qlora_cli.model.embedding_limits import num_positions
from qlora_cli.plan.trace.request import PlanRequest
from qlora_cli.plan.trace_cache import Tracer
from qlora_cli.progress import progress

UNITS = {"training.per_device_train_batch_size": 1, "data.max_length": 128, "lora.r": 8}
"""Recipe key -> what its value is a multiple of while it is searched."""

MAX_BATCH = 1024
MAX_LENGTH = 131_072
MAX_RANK = 512

NUM_GUESSES = 8
"""Guesses on the line; then the interval is halved."""


@dataclass(frozen=True)
class Fit:
    """Result of a search."""

    key: str
    value: int | None
    """The largest value that fits; None where not even the smallest does."""

    num_bytes: int
    """Bytes of the step at `value`, or at the smallest value where none fits."""

    tried: dict[int, int]
    """Value -> bytes, for every value that was traced."""

    most: int
    """The largest value that is searched."""

    @property
    def override(self) -> str:
        """The options to add to a command line.

        >>> Fit("lora.r", 64, 0, {}, most=512).override
        '--set lora.r=64'
        """
        return "" if self.value is None else f"--set {self.key}={self.value}"


def largest_fit(request: PlanRequest, key: str, memory_bytes: int, tracer: Tracer | None = None) -> Fit:
    """The largest value of `key` with which the step fits, all else as in the request.

    Args:
        request: the step.
        key: one of `UNITS`.
        memory_bytes: what the device has.
        tracer: what has been traced already.

    Raises:
        ValueError: if the key cannot be searched.
        RecipeError: if the base cannot be built.
    """
    if key not in UNITS:
        raise ValueError(f"'{key}' cannot be searched; {', '.join(UNITS)} can")
    tracer = tracer or Tracer()
    unit = UNITS[key]
    tried: dict[int, int] = {}

    def needed(count: int) -> int:
        tried[count * unit] = tracer.device_bytes(request.changed({key: count * unit}))
        return tried[count * unit]

    most = _limit(request, key) // unit
    with progress(f"searching the largest {key} that fits"):
        count = search(needed, memory_bytes, most)
    value = None if count is None else count * unit
    return Fit(key, value, tried[unit if value is None else value], tried, most * unit)


def _limit(request: PlanRequest, key: str) -> int:
    if key == "data.max_length":
        return num_positions(request.config) or MAX_LENGTH
    return MAX_BATCH if key == "training.per_device_train_batch_size" else MAX_RANK


def search(needed: Callable[[int], int], limit: int, most: int) -> int | None:
    """The largest whole number from 1 to `most` for which `needed` is within `limit`; None where it is not even for 1.

    `needed` must not fall. Each number is asked for once.

    >>> search(lambda count: 100 + 7 * count, 150, 1000)
    7
    """
    known = {1: needed(1)}
    if known[1] > limit:
        return None
    fits, too_large = 1, most + 1
    for number in range(NUM_GUESSES + most.bit_length()):
        if too_large - fits == 1:
            break
        guess = _guess(known, fits, too_large, limit) if number < NUM_GUESSES else (fits + too_large) // 2
        known[guess] = needed(guess)
        if known[guess] <= limit:
            fits = guess
        else:
            too_large = guess
    return fits


def _guess(known: dict[int, int], fits: int, too_large: int, limit: int) -> int:
    """Value at which the line through the two known points nearest to the answer crosses the limit, between the bounds.

    >>> _guess({1: 107}, 1, 1001, 150)
    2
    >>> _guess({1: 107, 2: 114}, 2, 1001, 150)
    7
    """
    above = known.get(too_large)
    points = sorted(known)
    other = too_large if above is not None else (points[-2] if len(points) > 1 else None)
    if other is None:
        return fits + 1
    slope = (known[other] - known[fits]) / (other - fits)
    step = (limit - known[fits]) / slope if slope > 0 else too_large
    return max(fits + 1, min(too_large - 1, fits + int(step)))
