"""`qlora chat`: a conversation with a model here, or with one behind a URL."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from qlora_cli import api, console
from qlora_cli.cli.deployment import Base, MaxNewTokens, Model, Seed, System, TopP
from qlora_cli.cli.options import BaseModel, LoadingOverrides, Quantization, Revision
from qlora_cli.errors import ArgumentError
from qlora_cli.interruption import keyboard_interrupts

if TYPE_CHECKING:
    from qlora_cli.serve.conversation import Conversation

URL_HELP = "Talk with an OpenAI-compatible server instead, as http://localhost:8000/v1; key in QLORA_CHAT_API_KEY."


def chat(
    run: Model = None,
    system: System = "",
    base: Base = False,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the most likely token.")] = 0.7,
    top_p: TopP = 1.0,
    max_new_tokens: MaxNewTokens = 512,
    seed: Seed = None,
    url: Annotated[str | None, typer.Option(help=URL_HELP, show_default="none")] = None,
    model: Annotated[
        str | None, typer.Option(help="Name of the model behind --url.", show_default="the only one there")
    ] = None,
    no_history: Annotated[
        bool, typer.Option("--no-history", help="Keep no typed lines for later sessions, and read none.")
    ] = False,
    base_model: BaseModel = None,
    revision: Revision = None,
    quantization: Quantization = None,
    overrides: LoadingOverrides = None,
) -> None:
    """Talk with a model in the terminal, or through a pipe."""
    if url is not None:
        here = {"RUN": run, "--base": base, "--base-model": base_model, "--revision": revision}
        _refuse_both("--url", here | {"--quantization": quantization, "--set": overrides})
        from qlora_cli.serve.generation import SamplingOptions
        from qlora_cli.serve.remote import RemoteSession

        remote = RemoteSession(url, model, SamplingOptions(temperature, top_p, max_new_tokens, seed), system)
        _talk(remote, f"model {remote.model} at {url}", is_history_kept=not no_history)
        return

    _refuse_both("a model that is loaded here", {"--model": model})
    session = api.chat(
        run,
        system=system,
        base=base,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        seed=seed,
        base_model=base_model,
        revision=revision,
        quantization=quantization,
        overrides=overrides or (),
    )
    from qlora_cli.serve.speaker import describe

    _talk(session, describe(session.tuned), is_history_kept=not no_history)


def _talk(session: Conversation, who: str, *, is_history_kept: bool) -> None:
    from qlora_cli.serve.chat import chat as chat_on
    from qlora_cli.serve.chat_input import history_file, kept_history, read_inputs

    console.note(f"{who}; /help lists the commands")
    has_history = is_history_kept and sys.stdin.isatty()
    with (
        console.library_noise_to(None),
        kept_history(history_file()) if has_history else nullcontext(),
        keyboard_interrupts(),
    ):
        chat_on(session, read_inputs(sys.stdin), console.piece)


def _refuse_both(one: str, others: dict[str, object]) -> None:
    given = [name for name, value in others.items() if value]
    if given:
        hint = "leave one of them out; --model names what --url has"
        raise ArgumentError(f"{given[0]} does not go with {one}", hint=hint)


def register(app: typer.Typer) -> None:
    """Add this file's command to the app."""
    app.command()(chat)
