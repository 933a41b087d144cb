"""Our scripts in the Python of an engine: a request as JSON, answers in a folder."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from qlora_cli.deploy.engines.engine import Answers, Questions
from qlora_cli.deploy.engines.process import last_words, run_logged
from qlora_cli.deploy.verify import NUM_LAST_POSITIONS
from qlora_cli.engine_environment import EngineEnvironment
from qlora_cli.errors import ResourceError
from qlora_cli.progress import progress

SCRIPTS = Path(__file__).parent / "scripts"
"""Programs that run in another Python; they import nothing of this project."""


def required_python(environment: EngineEnvironment) -> Path:
    """The Python of an engine.

    Raises:
        ResourceError: if the engine is not installed, with the command that installs it.
    """
    if environment.python is None:
        raise ResourceError(
            f"{environment.module} is not installed",
            hint=f"install it with `{environment.install}`",
        )
    return environment.python


def call_script(environment: EngineEnvironment, script: Path, request: Mapping[str, Any], folder: Path) -> Path:
    """Run one of our scripts in an engine's Python: `python SCRIPT REQUEST.json`, which writes into `folder`.

    Args:
        environment: of the engine.
        script: imports nothing of this project.
        request: for the script, as JSON; it finds `folder` under "answers".
        folder: for request, log and answers.

    Returns:
        `folder`.

    Raises:
        ResourceError: if the engine is not installed, or the script fails, with its last words.
    """
    python = required_python(environment)
    folder.mkdir(parents=True, exist_ok=True)
    path, log = folder / "request.json", folder / "log.txt"
    path.write_text(json.dumps({**request, "answers": str(folder)}), encoding="utf-8")
    variables = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONNOUSERSITE": "1"}
    code = run_logged([python, script, path], log, variables=variables)
    if code != 0:
        kept = _kept(log, environment.name)
        raise ResourceError(
            f"{environment.module} failed (exit code {code}): {last_words(kept)}",
            place=str(kept),
            hint="the log has all of it; --format hf needs no other program",
        )
    return folder


def _kept(log: Path, name: str) -> Path:
    """A copy of a log where it outlives the folder of the call."""
    descriptor, path = tempfile.mkstemp(prefix=f"qlora-{name}-", suffix=".log")
    with os.fdopen(descriptor, "wb") as file:
        file.write(log.read_bytes())
    return Path(path)


def ask_script(
    environment: EngineEnvironment,
    script: Path,
    model: Path,
    questions: Questions,
    more: Mapping[str, Any] | None = None,
) -> Answers:
    """Have one of our scripts open a model in its engine and answer.

    The script writes `logits.safetensors` (float32 [L, V] under the number of each row) and `answers.json` with
    "texts" and "tokens_per_second".

    Args:
        environment: of the engine.
        script: as `call_script` takes it.
        model: folder to open.
        questions: what is asked.
        more: added to the request.

    Raises:
        ResourceError: as `call_script`.
    """
    request = {
        "model": str(model),
        "rows": [list(row) for row in questions.rows],
        "prompts": [list(prompt) for prompt in questions.prompts],
        "end_ids": sorted(questions.end_ids),
        "max_new_tokens": questions.max_new_tokens,
        "num_last": NUM_LAST_POSITIONS,
        "trust_remote_code": questions.trust_remote_code,
        **(more or {}),
    }
    with tempfile.TemporaryDirectory(prefix="qlora-") as temporary, progress(f"asking {environment.module}"):
        folder = call_script(environment, script, request, Path(temporary))
        answers = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "logits.safetensors") if questions.rows else {}
        logits = [tensors[str(number)].to(torch.float32) for number in range(len(questions.rows))]
    return Answers(logits, answers["texts"], answers["tokens_per_second"])
