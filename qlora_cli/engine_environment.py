"""Environments of engines that need other versions of torch or transformers than we do.

Each is a virtual environment in the cache folder, made by `qlora env NAME`, or one of the user's that a variable
points to. Nothing of it is imported here: a script of ours runs there in a process of its own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from qlora_cli.cache_folder import cache_folder


@dataclass(frozen=True)
class EngineEnvironment:
    """One engine: what is installed for it, and how it is known that it is there."""

    name: str
    module: str
    """Module that is imported to see whether the engine is there."""

    packages: tuple[str, ...]
    """For pip, in groups that are installed one after the other where there are several."""

    @property
    def variable(self) -> str:
        """Variable that names a Python with the engine in it, as QLORA_VLLM_PYTHON."""
        return f"QLORA_{self.name.upper().replace('-', '_')}_PYTHON"

    @property
    def folder(self) -> Path:
        """Where `qlora env` makes it."""
        return cache_folder("environments") / self.name

    @property
    def python(self) -> Path | None:
        """The Python to run the engine with; None where there is none yet."""
        named = os.environ.get(self.variable)
        candidate = Path(named) if named else self.folder / "bin" / "python"
        return candidate if candidate.is_file() else None


VLLM = EngineEnvironment("vllm", "vllm", ("vllm==0.32.*",))
"""Serves adapters together; `qlora_cli/model/vllm_limits.py` was read in this version."""
