"""llama.cpp: its converter, its quantizer and its engine, each in a process of its own.

Beside torch the quantizer crashes. The converter is not in the installed package: it is in the package's sources.
"""

from __future__ import annotations

import json
import os
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qlora_cli.cache_folder import CACHE_ELSEWHERE, cache_folder
from qlora_cli.deploy.engines.engine import Answers, Engine, Questions
from qlora_cli.deploy.engines.install import engine_version
from qlora_cli.deploy.engines.process import last_words, run_logged
from qlora_cli.deploy.engines.script_call import SCRIPTS, ask_script, call_script
from qlora_cli.engine_environment import GGUF, LLAMA_CPP_PYTHON
from qlora_cli.errors import ResourceError
from qlora_cli.progress import progress
from qlora_cli.run.disk_errors import naming
from qlora_cli.run.folders import replaced_folder

SOURCES = "QLORA_LLAMA_CPP"
"""Variable that names a checkout of llama.cpp whose converter is used in place of a downloaded one."""

CONVERTER = "convert_hf_to_gguf.py"


def run_step(script: str, request: Mapping[str, Any], folder: Path) -> Path:
    """Run one of our `gguf_*.py` scripts in llama.cpp's environment; returns the folder with what it wrote.

    Raises:
        ResourceError: if llama.cpp is not installed, or the script fails, with its last words.
    """
    return call_script(GGUF, SCRIPTS / script, request, folder)


def cut_with_llama_cpp(file: Path, texts: Sequence[str]) -> list[list[int]]:
    """Token ids that llama.cpp makes of texts with the tokenizer in a GGUF file."""
    with tempfile.TemporaryDirectory(prefix="qlora-") as temporary:
        folder = run_step("gguf_ask.py", {"model": str(file), "texts": list(texts)}, Path(temporary))
        tokens: list[list[int]] = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
    return tokens


def converter_folder() -> Path:
    """The folder with llama.cpp's converter; its sources are fetched with pip the first time.

    Raises:
        ResourceError: if they cannot be fetched.
    """
    if named := os.environ.get(SOURCES):
        folder = Path(named).expanduser()
        if not (folder / CONVERTER).is_file():
            raise ResourceError(f"{SOURCES} names a folder without {CONVERTER}: '{named}'", hint=f"unset {SOURCES}")
        return folder
    folder = cache_folder("llama.cpp") / LLAMA_CPP_PYTHON.partition("==")[2]
    if not (folder / CONVERTER).is_file():
        with naming(folder.parent, CACHE_ELSEWHERE), replaced_folder(folder) as stage:
            _fetch(stage)
    return folder


def _fetch(stage: Path) -> None:
    """Unpack the converter of the very version that runs the files."""
    with tempfile.TemporaryDirectory(prefix="qlora-") as temporary, progress("fetching llama.cpp's converter"):
        log = Path(temporary) / "log.txt"
        command = [GGUF.python or "python", "-m", "pip", "--disable-pip-version-check", "download", "--no-input"]
        command += ["--no-deps", "--no-binary", "llama-cpp-python", "--dest", temporary, LLAMA_CPP_PYTHON]
        if run_logged(command, log) != 0:
            raise ResourceError(
                f"the sources of {LLAMA_CPP_PYTHON} could not be fetched: {last_words(log)}",
                hint=f"clone https://github.com/ggml-org/llama.cpp and name the folder with {SOURCES}=FOLDER",
            )
        with tarfile.open(next(Path(temporary).glob("*.tar.gz"))) as archive:
            for member in archive.getmembers():
                name = member.name.partition("/vendor/llama.cpp/")[2]
                if member.isfile() and name.startswith(("convert_", "conversion/", "gguf-py/", "LICENSE")):
                    member.name = name
                    archive.extract(member, stage, filter="data")


def ask_llama_cpp(folder: Path, questions: Questions) -> Answers:
    """Open the GGUF file of a folder with llama.cpp on the CPU and answer; an adapter is put on the questions' base."""
    if questions.base is None:
        return ask_script(GGUF, SCRIPTS / "gguf_ask.py", folder, questions)
    return ask_script(GGUF, SCRIPTS / "gguf_ask.py", questions.base, questions, {"adapter": str(folder)})


LLAMA_CPP = Engine("llama.cpp (llama-cpp-python)", GGUF.install, partial(engine_version, GGUF), ask_llama_cpp)
