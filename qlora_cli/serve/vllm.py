"""vLLM as the server of adapters: the command that starts it as training needs it, and its start."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import join, quote

from qlora_cli import console
from qlora_cli.cache_folder import cache_folder
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.engine_environment import NOT_INHERITED, VLLM
from qlora_cli.errors import ArgumentError, Problem, ResourceError
from qlora_cli.model.fingerprint import base_folder, fingerprint_tokenizer
from qlora_cli.model.tuned import TunedSource, check_base, load_tokenizer_of
from qlora_cli.model.vllm_limits import vllm_rank, vllm_refusals
from qlora_cli.run.files import write_text
from qlora_cli.serve.served_base import ServedBase, served_base, write_served_base

BASE_NAME = "base"
RESIDUAL_NAME = "residual"
"""Name of the served base under a PiSSA adapter, which is not the base that was trained."""

KEY_VARIABLE = "VLLM_API_KEY"
"""Variable that vLLM reads its key from, so that it stands in no list of processes."""

QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
"""vLLM reports usage over the network unless it is told not to; all that it opens is on this machine."""

ONE_EACH = "start a server for each, with a --port of its own"


@dataclass(frozen=True)
class Speech:
    """How a served model is spoken to, the same for all adapters of one server."""

    tokenizer: Path
    template: str
    """Jinja text of training."""

    end_ids: tuple[int, ...]
    """Tokens that end an answer."""

    vocabulary: str
    """Fingerprint of the tokenizer."""


def serve_with_vllm(
    sources: Mapping[str, TunedSource],
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key_variable: str | None = None,
    is_printed_only: bool = False,
) -> None:
    """Start vLLM in place of this process: signals, output and exit code are its own from then on.

    Args:
        sources: name -> adapter, all on one base, which is served as `base`; or one model without an adapter.
        host: address to listen on.
        port: to listen on.
        api_key_variable: environment variable of the key that clients must send; None for none.
        is_printed_only: print the commands for a shell on stdout, and start nothing. Small files that they name are
            written.

    Raises:
        ArgumentError: if vLLM does not serve one of the adapters, or they cannot be served together.
        IdentityError: if a base or tokenizer is not the one of training.
        ResourceError: if vLLM is not installed, or the base cannot be written.
    """
    refuse_unserved(sources)
    for source in sources.values():
        check_base(source)
    base, speech = _shared_base(sources), _shared_speech(sources)
    python = VLLM.python
    words = _words(sources, base, speech, host, port)
    if is_printed_only:
        for line in _shell_lines(python, base, words, api_key_variable):
            console.result(line)
        return
    if python is None:
        raise ResourceError(
            "vLLM is not installed in an environment of its own",
            hint=f"`qlora env {VLLM.name}` makes one, or set {VLLM.variable} to a Python that has it",
        )
    if not base.is_there:
        write_served_base(base)
    variables = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    variables = QUIET | variables
    if api_key_variable is not None:
        variables[KEY_VARIABLE] = _key_in(api_key_variable)
    console.note(f"vLLM answers at http://{host}:{port}/v1 once it has started")
    sys.stdout.flush()
    os.execve(python, [str(python), *words], variables)


def refuse_unserved(sources: Mapping[str, TunedSource]) -> None:
    """Refuse what vLLM would not serve, or not as it was trained.

    Raises:
        ArgumentError: with every reason and its way on.
    """
    problems = []
    for name, source in sources.items():
        if source.adapter is None:
            if len(sources) > 1:
                text = f"'{name}' is a model without an adapter, and one vLLM serves one model"
                problems.append(Problem(text, str(source.folder), ONE_EACH))
            continue
        if name in (BASE_NAME, RESIDUAL_NAME):
            hint = f"give the adapter another name: NAME={quote(str(source.folder))}"
            problems.append(Problem(f"'{name}' is the name under which the base is served", hint=hint))
        problems += [
            Problem(f"vLLM does not serve it: {refusal.text}", str(source.folder), refusal.way_on)
            for refusal in vllm_refusals(source.adapter)
        ]
    if problems:
        raise ArgumentError(problems)


def _shared_base(sources: Mapping[str, TunedSource]) -> ServedBase:
    bases = {name: served_base(source) for name, source in sources.items()}
    (first, base), *others = bases.items()
    for name, other in others:
        if (other.identity, other.dtype) != (base.identity, base.dtype):
            raise ArgumentError(
                f"'{first}' and '{name}' were trained on different bases, or on one that was quantized otherwise",
                place=str(sources[name].folder),
                hint=ONE_EACH,
            )
    return base


def _shared_speech(sources: Mapping[str, TunedSource]) -> Speech:
    spoken = {name: _speech(source) for name, source in sources.items()}
    (first, speech), *others = spoken.items()
    for name, other in others:
        for part, what in (("vocabulary", "tokenizers"), ("template", "chat templates")):
            if getattr(speech, part) != getattr(other, part):
                raise ArgumentError(
                    f"'{first}' and '{name}' were trained with different {what}, and one vLLM has one",
                    place=str(sources[name].folder),
                    hint=ONE_EACH,
                )
    return speech


def _speech(source: TunedSource) -> Speech:
    tokenizer = load_tokenizer_of(source)
    renderer = Renderer(tokenizer)
    folder = source.tokenizer or base_folder(source.model, whole=True)
    end_ids = tuple(sorted(renderer.end_of_turn_ids))
    return Speech(folder.absolute(), renderer.template, end_ids, fingerprint_tokenizer(tokenizer))


def _words(
    sources: Mapping[str, TunedSource], base: ServedBase, speech: Speech, host: str, port: int
) -> tuple[str, ...]:
    """Arguments of the Python that has vLLM."""
    settings = _settings_folder(speech)
    adapters = {name: source.adapter.absolute() for name, source in sources.items() if source.adapter is not None}
    is_residual = any(source.base_source is not None for source in sources.values())
    name = (RESIDUAL_NAME if is_residual else BASE_NAME) if adapters else next(iter(sources))
    words = [
        *("-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(base.folder), "--served-model-name", name, "--dtype", base.dtype),
        *("--tokenizer", str(speech.tokenizer), "--chat-template", str(settings / "chat_template.jinja")),
        *("--generation-config", str(settings), "--max-model-len", "auto"),
        *("--host", host, "--port", str(port)),
    ]
    if any(source.model.trust_remote_code for source in sources.values()):
        words.append("--trust-remote-code")
    if adapters:
        words += ["--enable-lora", "--max-loras", str(len(adapters))]
        words += ["--max-lora-rank", str(vllm_rank(adapters.values()))]
        words += ["--lora-modules", *(_module(name, path) for name, path in adapters.items())]
    return tuple(words)


def _module(name: str, path: Path) -> str:
    """
    >>> _module("a", Path("/runs/a/adapter")), _module("b", Path("/runs/1,2"))
    ('a=/runs/a/adapter', '{"name": "b", "path": "/runs/1,2"}')
    """
    is_plain = "," not in f"{name}{path}" and "=" not in name
    return f"{name}={path}" if is_plain else json.dumps({"name": name, "path": str(path)})


def _settings_folder(speech: Speech) -> Path:
    """A folder with the template of training, and with generation settings that hold nothing but where answers end.

    With vLLM's own `--generation-config vllm` answers would end where the base's file says, which may not know the
    end of the turns that were trained; with the base's file its sampling settings would be in force.
    """
    generation = json.dumps({"eos_token_id": list(speech.end_ids)}, indent=2) + "\n"
    digest = hashlib.sha256(f"{generation}{speech.template}".encode()).hexdigest()
    folder = cache_folder("vllm") / digest[:16]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "generation_config.json", generation)
    write_text(folder / "chat_template.jinja", speech.template, is_content=True)
    return folder


def _shell_lines(
    python: Path | None, base: ServedBase, words: tuple[str, ...], api_key_variable: str | None
) -> list[str]:
    """The same for a shell, line by line: what is not there yet is made first."""
    lines = [] if python else [f"qlora env {VLLM.name}"]
    if not base.is_there:
        lines.append(join(("qlora", *base.arguments)))
    key = [f'{KEY_VARIABLE}="${api_key_variable}"'] if api_key_variable else []
    variables = [*key, *(f"{name}={value}" for name, value in QUIET.items())]
    own = python or VLLM.folder / "bin" / "python"
    return [*lines, " ".join((*variables, join((str(own), *words))))]


def _key_in(variable: str) -> str:
    key = os.environ.get(variable, "")
    if not key:
        raise ArgumentError(
            f"{variable} is not set, and clients would need no key", hint=f"export {variable} with a key of your own"
        )
    return key
