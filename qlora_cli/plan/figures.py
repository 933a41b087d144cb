"""Sizes, times and rates of a plan as a person reads them."""

from __future__ import annotations

from math import floor, log10

from qlora_cli.constants import GIB, KIB, MIB

SMALL_GIB = 0.1
"""Below it a size is given in MiB: with two decimals of a GiB it would lose its figures, or be zero."""


def in_gib(num_bytes: float) -> str:
    """
    >>> in_gib(3 * 2**30), in_gib(1_000_000)
    ('3.00', '0.00')
    """
    return f"{num_bytes / GIB:,.2f}"


def in_mib(num_bytes: float) -> str:
    """
    >>> in_mib(3 * 2**20), in_mib(70_000)
    ('3.0', '0.1')
    """
    return f"{num_bytes / MIB:,.1f}"


def size(num_bytes: float) -> str:
    """A number of bytes with the unit that shows it.

    >>> size(3 * 2**30), size(5_000_000), size(70_000), size(0)
    ('3.00 GiB', '4.8 MiB', '68.4 KiB', '0 bytes')
    """
    if num_bytes >= SMALL_GIB * GIB:
        return f"{in_gib(num_bytes)} GiB"
    if num_bytes >= SMALL_GIB * MIB:
        return f"{in_mib(num_bytes)} MiB"
    return f"{num_bytes / KIB:.1f} KiB" if num_bytes >= SMALL_GIB * KIB else f"{num_bytes:.0f} bytes"


def duration(seconds: float) -> str:
    """
    >>> duration(0.31), duration(42), duration(600), duration(5400), duration(200_000)
    ('0.31 s', '42 s', '10 min', '1.5 h', '2.3 days')
    """
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= (2 if unit == "days" else 1) * length:
            return f"{seconds / length:.{0 if seconds >= 10 * length else 1}f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def two_digits(value: float) -> str:
    """An estimate, of which more digits would say more than is known.

    >>> two_digits(1159), two_digits(436_075), two_digits(0.1234), two_digits(0)
    ('1,200', '440,000', '0.12', '0')
    """
    if value <= 0:
        return "0"
    decimals = 1 - floor(log10(value))
    return f"{round(value, decimals):,.{max(decimals, 0)}f}"
