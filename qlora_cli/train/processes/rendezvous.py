"""Rendezvous of the processes of one launch: a Unix socket that has no file and no port."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import select
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any, BinaryIO

from qlora_cli.errors import ArgumentError, QloraError
from qlora_cli.train.processes.launch import Launch

TIMEOUT_SECONDS = 25.0
"""Time that the others may take to start; they need a fifth of a second, since nothing heavy is imported before."""

TIMEOUT_SECONDS_WITH_AGENT = 300.0
"""The same where a launcher ends all processes when one of them dies."""

POLL_SECONDS = 0.05
"""Time of one poll for another process."""


class Deadline:
    """Time to wait, counted in polls: time in which the system lets no process run counts as one of them."""

    def __init__(self, seconds: float) -> None:
        self._polls_left = math.ceil(seconds / POLL_SECONDS)

    def has_polls_left(self) -> bool:
        """Whether there was another poll left."""
        self._polls_left -= 1
        return self._polls_left >= 0

    def wait_for_data(self, source: socket.socket) -> bool:
        """Whether a connection or data arrived before the time was over."""
        while self.has_polls_left():
            if select.select([source], [], [], POLL_SECONDS)[0]:
                return True
        return False


@dataclass(frozen=True)
class Peer:
    """A connection to another process of the launch."""

    rank: int
    pid: int
    connection: socket.socket
    lines: BinaryIO
    """Its messages, one JSON object a line."""

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; to a process that has ended, nothing is sent."""
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")


def rendezvous(launch: Launch) -> list[Peer]:
    """Connections of rank 0 to each other process, or of another process to rank 0.

    Raises:
        ArgumentError: if another process does not connect in time, or another launch uses the same name.
    """
    deadline = Deadline(_timeout_seconds(launch))
    return _accept(launch, deadline) if launch.rank == 0 else [_connect(launch, deadline)]


def _timeout_seconds(launch: Launch) -> float:
    return TIMEOUT_SECONDS_WITH_AGENT if launch.has_agent else TIMEOUT_SECONDS


def _address(launch: Launch) -> str:
    """A name beginning with a zero byte is in Linux's abstract namespace: no file, gone with its process."""
    digest = hashlib.sha256(f"{os.getuid()}/{launch.name}".encode()).hexdigest()
    return f"\0qlora-{digest[:32]}"


def _accept(launch: Launch, deadline: Deadline) -> list[Peer]:
    peers: dict[int, Peer] = {}
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(_address(launch))
        except OSError as fault:
            raise ArgumentError(
                "another run is being started with the same MASTER_ADDR and MASTER_PORT",
                hint="choose another port: `torchrun --master-port 29501 ...`",
            ) from fault
        listener.listen(launch.world_size)
        while len(peers) < launch.world_size - 1:
            if not deadline.wait_for_data(listener):
                error = _missing_ranks(sorted(set(range(1, launch.world_size)) - peers.keys()), launch)
                for peer in peers.values():
                    peer.send({"failure": [error.exit_code, 0, None]})
                raise error
            connection, _ = listener.accept()
            arrived = _handshake(connection, deadline)
            if arrived is not None and arrived.rank not in peers and 0 < arrived.rank < launch.world_size:
                peers[arrived.rank] = arrived
    return list(peers.values())


def _handshake(connection: socket.socket, deadline: Deadline) -> Peer | None:
    """The process that has connected, if it is one of this user's and says its rank."""
    pid, user = _peer_credentials(connection)
    lines = connection.makefile("rb")
    rank = None
    if user == os.getuid() and deadline.wait_for_data(connection):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            rank = json.loads(lines.readline())["rank"]
    if user != os.getuid() or not isinstance(rank, int):
        connection.close()
        return None
    return Peer(rank, pid, connection, lines)


def _connect(launch: Launch, deadline: Deadline) -> Peer:
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(_address(launch))
        except OSError as fault:
            connection.close()
            if not deadline.has_polls_left():
                if launch.rank > 1:
                    raise SystemExit(ArgumentError.exit_code) from fault
                raise _missing_ranks([0], launch) from fault
            time.sleep(POLL_SECONDS)
            continue
        pid, user = _peer_credentials(connection)
        if user != os.getuid():
            raise ArgumentError("another user's program answers in place of process 0", hint="choose another port")
        peer = Peer(0, pid, connection, connection.makefile("rb"))
        peer.send({"rank": launch.rank})
        return peer


def _peer_credentials(connection: socket.socket) -> tuple[int, int]:
    """Process id and user id of the other end, as the kernel knows them."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, user, _ = struct.unpack("3i", credentials)
    return pid, user


def _missing_ranks(ranks: list[int], launch: Launch) -> QloraError:
    missing = ", ".join(map(str, ranks))
    noun = "rank" if len(ranks) == 1 else "ranks"
    seconds = _timeout_seconds(launch)
    return ArgumentError(
        f"{noun} {missing} of {launch.world_size} did not connect within {seconds:.0f} s",
        hint=f"start all of them together: `{launch.command} train RECIPE`",
    )
