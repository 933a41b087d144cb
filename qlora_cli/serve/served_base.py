"""The base that an engine serves adapters on: the weights that training saw, in a folder that any engine opens.

Training computes on the values that 4 or 8 bits have left of a base. An engine that loads the original would answer
with another model, so the dequantized base is written once, into the cache folder, and used again.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from qlora_cli import console
from qlora_cli.cache_folder import cache_folder
from qlora_cli.constants import MERGE_RECORD
from qlora_cli.errors import IdentityError, ResourceError
from qlora_cli.model.device import DTYPES, pick_device, pick_dtype
from qlora_cli.model.fingerprint import base_folder, fingerprint_base
from qlora_cli.model.tuned import TunedSource, find_tuned
from qlora_cli.recipe.schema import ModelSection
from qlora_cli.run.files import read_json_object

FOR_FEW_BITS = "bfloat16"
"""What vLLM computes in on a base in 4-bit integers that training computed on in float32: its kernels for such weights
take 16 bits alone, and in version 0.32 the one for CPUs fails at the first request."""


@dataclass(frozen=True)
class ServedBase:
    """A folder to serve, and how it comes about."""

    folder: Path
    dtype: str
    """Precision of the computation, as in training where the engine has it: float32, bfloat16 or float16."""

    arguments: tuple[str, ...] = ()
    """Of `qlora`: the command that writes the folder; empty where it is there for another reason."""

    identity: str = ""
    """Record of the weights: two sources with the same can be served together."""

    @property
    def is_there(self) -> bool:
        """Whether the folder can be served as it is."""
        return not self.arguments or _has_record(self)


def served_base(source: TunedSource) -> ServedBase:
    """The base of a tuned model as training saw it.

    Raises:
        IdentityError: if the base's files are not there.
        RecipeError: if this machine does not compute in the precision that the recipe names.
    """
    dtype = next(name for name, kind in DTYPES.items() if kind is pick_dtype(source.model.dtype, pick_device()))
    stood_on = source.stored_model if source.base_source is None else ModelSection(base_model=source.base_source)
    fingerprint = fingerprint_base(stood_on)
    if source.quantization is None or source.quantization.is_served_as_stored:
        if source.quantization is not None and dtype == "float32":
            dtype = FOR_FEW_BITS
            console.note(f"vLLM computes on a base in 4-bit integers in {dtype}, training did so in float32")
        return ServedBase(base_folder(stood_on, whole=True).absolute(), dtype, identity=fingerprint)
    stored = json.dumps(source.quantization.model_dump(mode="json"), sort_keys=True)
    identity = f"{fingerprint} {stored}"
    digest = hashlib.sha256(f"{identity} {dtype}".encode()).hexdigest()
    folder = cache_folder("served-bases") / f"{Path(source.model.base_model).name}-{digest[:12]}"
    out = ("--base-only", "--dtype", dtype, "--out", str(folder))
    return ServedBase(
        folder, dtype, ("merge", str(source.folder.absolute()), *out, *_choice_of(source)), identity=identity
    )


def write_served_base(base: ServedBase) -> None:
    """Write the folder, by `qlora merge` in a process of its own, which gives its memory back before an engine starts.

    Raises:
        ResourceError: if the command fails; what it said stands above.
    """
    console.note(f"writing the base that training saw into {base.folder}, once")
    base.folder.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([sys.executable, "-m", "qlora_cli", *base.arguments], stdout=subprocess.DEVNULL, check=False)
    if not base.is_there:
        raise ResourceError(
            f"the base could not be written (exit code {done.returncode})",
            place=str(base.folder),
            hint=f"what `{' '.join(('qlora', *base.arguments[:2]))}` said above tells why",
        )


def _choice_of(source: TunedSource) -> list[str]:
    """Options of `qlora` that lead from what was saved with an adapter to `source`."""
    saved, options = find_tuned(source.folder), []
    if source.model.base_model != saved.model.base_model:
        options += ["--base-model", source.model.base_model]
    if source.model.revision != saved.model.revision and source.model.revision is not None:
        options += ["--revision", source.model.revision]
    if source.quantization is not None and source.quantization != saved.quantization:
        options += ["--quantization", source.quantization.kind]
    ours, theirs = (model.model_dump(exclude={"base_model", "revision"}) for model in (source.model, saved.model))
    changed = {name: value for name, value in ours.items() if value != theirs[name]}
    return [*options, *(word for name, value in changed.items() for word in ("--set", f"model.{name}={value}"))]


def _has_record(base: ServedBase) -> bool:
    """Whether the folder holds what `identity` says, by the record that was written last into it."""
    path = base.folder / MERGE_RECORD
    if not path.is_file():
        return False
    try:
        record = read_json_object(path, hint="")
    except IdentityError:
        return False
    stored = json.dumps(record.get("quantization"), sort_keys=True)
    return record.get("adapter_sha256") is None and f"{record.get('base_fingerprint')} {stored}" == base.identity
