"""One line of what `qlora doctor` found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class DoctorFinding:
    """One thing looked at."""

    what: str
    found: str
    is_fine: bool = True
    is_tried: bool = True
    """False for what was only looked up, or not tested at all: such a line does not say `ok`."""

    def cells(self) -> tuple[str, str, str]:
        """The line's cells as a person reads them."""
        mark = "ok" if self.is_tried else "-"
        return (mark if self.is_fine else "FAIL", self.what, self.found)

    def as_dict(self) -> dict[str, Any]:
        """The finding as JSON holds it."""
        return asdict(self)
