"""Memory needs of steps, each traced once: in this process, and on this machine.

A trace takes seconds, and its result follows from the recipe, the base's configuration, the device and the code. So it
is kept under `$QLORA_CACHE/plans`, one small JSON file for each step, under a hash of all of these.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

from qlora_cli.cache_folder import cache_folder
from qlora_cli.errors import IdentityError
from qlora_cli.plan.budget import DeviceMemory, device_memory
from qlora_cli.plan.trace.request import PlanRequest
from qlora_cli.plan.trace.trace_step import trace_step
from qlora_cli.recipe.shipped import PACKAGE
from qlora_cli.run.files import read_json_object, write_json
from qlora_cli.run.manifest import library_versions


def plans_root() -> Path:
    """Folder of the traced needs."""
    return cache_folder("plans")


class Tracer:
    """Memory of requests, each traced once."""

    def __init__(self) -> None:
        self._known: dict[str, DeviceMemory] = {}

    def needs(self, request: PlanRequest) -> DeviceMemory:
        """Memory that the step takes of its device.

        Raises:
            RecipeError: if the base cannot be built or its step cannot be traced.
        """
        key = _key(request)
        if key not in self._known:
            self._known[key] = _kept(key) or _traced(key, request)
        return self._known[key]

    def device_bytes(self, request: PlanRequest) -> int:
        """Everything that the process would take of the device."""
        return self.needs(request).device_bytes


def _key(request: PlanRequest) -> str:
    recipe = request.recipe
    facts = [
        *(repr(section) for section in (recipe.model, recipe.quantization, recipe.lora, recipe.training)),
        f"{recipe.data.max_length} {recipe.data.packing} {request.device}",
        request.config.to_json_string(use_diff=False),
        json.dumps(library_versions(), sort_keys=True),
        code_fingerprint(),
    ]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]


@cache
def code_fingerprint(package: Path = PACKAGE) -> str:
    """Of all code, since a trace runs plan, model, recipe and work-arounds, and they import most of the rest.

    A changed rule makes other needs under the same version number. It takes 10 ms, once a process.
    """
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _kept(key: str) -> DeviceMemory | None:
    """Needs that an earlier process traced; None where there are none or the file is damaged."""
    path = plans_root() / f"{key}.json"
    if not path.is_file():
        return None
    try:
        return DeviceMemory.from_dict(read_json_object(path, hint=""))
    except (IdentityError, KeyError, TypeError):
        return None


def _traced(key: str, request: PlanRequest) -> DeviceMemory:
    needs = device_memory(request, trace_step(request))
    try:
        plans_root().mkdir(parents=True, exist_ok=True)
        write_json(plans_root() / f"{key}.json", needs.as_dict())
    except OSError:
        pass  # a full or read-only disk costs the next process a trace, and nothing else
    return needs
