"""The server's process: its socket, its patience with slow clients, and its end on a signal."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from qlora_cli import console
from qlora_cli.errors import ArgumentError
from qlora_cli.interruption import Interruption, heeded_signals, is_in_main_thread, leave_at_once
from qlora_cli.serve.http.app import build_app
from qlora_cli.serve.http.serving import Serving


class ServerStopped(Interruption):
    """A stop signal has come, and the answers that were begun are finished or have run out of time."""

    @property
    def farewell(self) -> str:
        """The last line of the command."""
        return f"{self}: the server has stopped"


def listen(host: str, port: int) -> socket.socket:
    """A socket that nobody else has; port 0 takes a free one.

    Raises:
        ArgumentError: if the address is in use or is none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(1024)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ArgumentError(
            f"cannot listen on {host}, port {port}: {reason}", hint="choose another with --host and --port"
        ) from error
    return found


def run_server(
    serving: Serving,
    listening: socket.socket,
    on_ready: Callable[[], None],
    on_made: Callable[[uvicorn.Server], None] = lambda _: None,
) -> None:
    """Serve until a stop signal comes, then finish the answers that were begun. A second signal ends at once.

    Args:
        serving: what answers; its engine is closed when this is over.
        listening: the socket.
        on_ready: called once requests are answered.
        on_made: given the server, which ends when its `should_exit` is set, in a thread that gets no signals.

    Raises:
        ServerStopped: with the signal.
    """
    limits = serving.limits
    for name in ("uvicorn.error", "uvicorn.access", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # a client's fault is no line of ours
    config = uvicorn.Config(
        build_app(serving),
        http=_PatientProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=limits.max_header_bytes,
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=limits.grace_seconds,
    )
    _PatientProtocol.header_seconds = limits.header_seconds
    server = _Server(config, serving, on_ready)
    on_made(server)
    try:
        server.run(sockets=[listening])
    finally:
        serving.is_closing = True
        serving.engine.close(0)
    if server.stopped_by is not None:
        raise ServerStopped(server.stopped_by)


class _Server(uvicorn.Server):
    """Signals as the other commands heed them."""

    def __init__(self, config: uvicorn.Config, serving: Serving, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.stopped_by: int | None = None
        """The first stop signal."""

        self._serving = serving
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell that all is ready once it is."""
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell what is waited for."""
        state = self._serving.engine.state()
        if num_left := state.num_running + state.num_waiting:
            console.note(f"finishing {num_left} answers; once more ends at once")
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle all stop signals, not only the two that uvicorn knows."""
        numbers = heeded_signals() if is_in_main_thread() else []
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal lets answers finish, the second does not."""
        if self.stopped_by is not None:
            leave_at_once(sig)
        self.stopped_by = sig
        self._serving.is_closing = True
        self.should_exit = True


class _PatientProtocol(H11Protocol):
    """A connection whose headers must come within a time; uvicorn waits for them without end."""

    header_seconds = 10.0

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The time begins with the connection."""
        super().connection_made(transport)
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        """And with the first byte of a further request."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._deadline is None:
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is waited for."""
        self._stop_waiting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer a request whose body cannot be read; the application, which has seen its headers, says no more."""
        if self.cycle is not None:
            self.cycle.disconnected = True
        super().send_400_response(msg)

    def _expect_headers(self) -> None:
        self._deadline = self.loop.call_later(self.header_seconds, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
