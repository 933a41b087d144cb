"""`qlora serve`: from names and folders to a server that answers."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from qlora_cli import console
from qlora_cli.errors import ArgumentError
from qlora_cli.model.base_choice import AS_SAVED, BaseChoice
from qlora_cli.model.tuned import TunedSource, find_tuned
from qlora_cli.serve.engine.loading import load_engine
from qlora_cli.serve.engine.scheduler import EngineLimits
from qlora_cli.serve.http.limits import HttpLimits
from qlora_cli.serve.http.server import listen, run_server
from qlora_cli.serve.http.serving import Access, Serving
from qlora_cli.serve.named_models import NamedModel


@dataclass(frozen=True)
class ServeOptions:
    """Where the server listens, who may ask it, and how much at once."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_key_variable: str = "QLORA_API_KEY"
    """Environment variable of the key that clients must send."""

    allowed_origins: tuple[str, ...] = ()
    """Sites whose pages may ask, besides the server's own."""

    max_queue: int = 256
    max_batch: int = 32
    answer_seconds: float = 600.0
    grace_seconds: int = 60


def find_sources(models: Sequence[NamedModel], choice: BaseChoice = AS_SAVED) -> dict[str, TunedSource]:
    """The models by name; one without a name has that of its run, else of its folder.

    Args:
        models: as `named_models` gives them.
        choice: the base under all of them, where it is not what was saved.

    Raises:
        ArgumentError: if a name is given twice; and as `find_tuned`.
    """
    found: dict[str, TunedSource] = {}
    for model in models:
        source = find_tuned(model.path, choice)
        name = model.name or _name_of(source)
        if name in found:
            raise ArgumentError(f"the name '{name}' is given twice", hint=f"give each its own: {name}-2={model.path}")
        found[name] = source
    return found


def _name_of(source: TunedSource) -> str:
    return (source.run.path if source.run else source.folder).resolve().name


def key_for(options: ServeOptions) -> str:
    """The API key that clients must send; empty where none is set and only this machine can reach the server.

    Raises:
        ArgumentError: if others could reach it without a key.
    """
    key = os.environ.get(options.api_key_variable, "").strip()
    if not key and not is_loopback(options.host):
        raise ArgumentError(
            f"--host {options.host} can be reached from other machines, and {options.api_key_variable} holds no key",
            hint=f"export {options.api_key_variable}=$(openssl rand -hex 32), or leave --host out",
        )
    return key


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.4", "")]
    [True, True, True, False, False, False]
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(sources: dict[str, TunedSource], options: ServeOptions) -> None:
    """Load the models and answer until a stop signal comes.

    Raises:
        ServerStopped: with the signal.
        ArgumentError, IdentityError, RecipeError: as `load_engine`; if the address is taken; without a needed key.
    """
    key = key_for(options)
    listening = listen(options.host, options.port)  # before minutes of loading
    with listening:
        limits = EngineLimits(max_rows=options.max_batch, max_waiting=options.max_queue)
        loaded = load_engine(list(sources.items()), limits)
        access = Access(key, _hosts(options.host), frozenset(options.allowed_origins))
        http_limits = HttpLimits(answer_seconds=options.answer_seconds, grace_seconds=options.grace_seconds)
        serving = Serving(loaded.engine, loaded.renderer, access, http_limits)
        names = ", ".join(loaded.engine.names)
        address = _address(listening, options.host)
        ready = f"{names} in {loaded.computed_in} at {address}/v1; a page to chat at {address}/; Ctrl-C ends"
        run_server(serving, listening, lambda: console.note(ready))


def _hosts(host: str) -> frozenset[str] | None:
    """Names that a loopback server is addressed by; any, where an API key is asked for."""
    return frozenset(("localhost", "127.0.0.1", "::1", host)) if is_loopback(host) else None


def _address(listening: socket.socket, host: str) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
