"""What a row of the table in `upstream_names.py` is made of."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

TESTED = {
    "accelerate": "1.15.0",
    "bitsandbytes": "0.50.2",
    "huggingface_hub": "2.4.0",
    "Jinja2": "3.1.6",
    "peft": "0.21.2",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "trl": "1.16.0",
}
"""Library -> the version that the tests passed with, as in constraints.txt."""


class Road(StrEnum):
    """What somebody wants to do; the names of a road are looked at when it is taken."""

    TRAINING = "training"
    TEMPLATES = "rendering chats"
    BASE = "loading a base"
    QUANTIZED = "loading a base in 4 or 8 bit"
    MERGE = "merging"
    PLAN = "planning"
    CALIBRATION = "calibrating a plan on a GPU"
    HUB = "asking the Hub"
    """Looked at after an import has failed."""


class Use(StrEnum):
    """What we do with a name."""

    OVERRIDDEN = "overridden"
    """By a method of ours, which the library must still call."""

    CALLED = "called"
    READ = "read"
    WRITTEN = "written"
    TRUSTED = "trusted"
    """Left to the library, which uses it in the way that we count on."""


@dataclass(frozen=True)
class Name:
    """One name of a library."""

    road: Road
    module: str
    use: Use
    path: str
    """Attributes below the module; with `inside`, a single name or text."""

    need: str
    """What of ours depends on it, as in "..., which exact resume needs"."""

    inside: str = ""
    """The function that holds `path` in its code."""

    returns_last: str = ""
    """The variable that the function returns as the last of several."""

    @property
    def library(self) -> str:
        """The distribution that it belongs to."""
        top = self.module.partition(".")[0]
        return next(name for name in TESTED if name.lower() == top)
