"""`qlora serve`: tuned models over HTTP."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

import typer

from qlora_cli import console
from qlora_cli.choices import ServingEngine
from qlora_cli.cli.options import BaseModel, LoadingOverrides, Quantization, Revision
from qlora_cli.errors import ArgumentError, ResourceError
from qlora_cli.progress import loading_libraries

Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME=RUN]...",
        help="Run directories, PEFT adapters or a model folder, with the names that requests use.",
        show_default="the latest run",
    ),
]

KeyVariable = Annotated[
    str, typer.Option("--api-key-env", metavar="VARIABLE", help="Environment variable with the key for clients.")
]

Origins = Annotated[
    list[str] | None,
    typer.Option(help="Site whose pages may ask, as https://example.org; may be repeated.", show_default="none"),
]


def serve(
    models: Models = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine need a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    api_key_env: KeyVariable = "QLORA_API_KEY",
    engine: Annotated[ServingEngine, typer.Option(help="What computes the answers.")] = "transformers",
    print_only: Annotated[bool, typer.Option("--print", help="Print the command of vLLM and start nothing.")] = False,
    max_queue: Annotated[int, typer.Option(min=0, help="Requests that may wait; more are refused.")] = 256,
    max_batch: Annotated[int, typer.Option(min=1, help="Answers that are made at once.")] = 32,
    allow_origin: Origins = None,
    answer_seconds: Annotated[float, typer.Option(min=1, help="Longest time for an answer, waiting included.")] = 600,
    grace_seconds: Annotated[int, typer.Option(min=0, help="Time for begun answers after a stop signal.")] = 60,
    base_model: BaseModel = None,
    revision: Revision = None,
    quantization: Quantization = None,
    overrides: LoadingOverrides = None,
) -> None:
    """Answer over HTTP as OpenAI's API does."""
    if print_only and engine != "vllm":
        raise ArgumentError("--print shows how vLLM is started", hint="add --engine vllm, or leave --print out")
    _refuse_without_server()
    from qlora_cli.serve.named_models import named_models

    named = named_models(models or ())
    with loading_libraries():
        from qlora_cli.model.base_choice import BaseChoice
        from qlora_cli.serve.http import command

    options = command.ServeOptions(
        host=host,
        port=port,
        api_key_variable=api_key_env,
        allowed_origins=tuple(allow_origin or ()),
        max_queue=max_queue,
        max_batch=max_batch,
        answer_seconds=answer_seconds,
        grace_seconds=grace_seconds,
    )
    base = BaseChoice(base_model, revision, quantization, tuple(overrides or ()))
    sources = command.find_sources(named, base)
    if engine == "vllm":
        from qlora_cli.serve.vllm import serve_with_vllm

        key_variable = api_key_env if command.key_for(options) else None
        serve_with_vllm(sources, host, port, key_variable, print_only)
        return
    with console.library_noise_to(None):
        command.serve(sources, options)


def _refuse_without_server() -> None:
    if missing := [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]:
        raise ResourceError(f"{' and '.join(missing)} not installed", hint="pip install 'qlora-cli[serve]'")


def register(app: typer.Typer) -> None:
    """Add this file's command to the app."""
    app.command()(serve)
