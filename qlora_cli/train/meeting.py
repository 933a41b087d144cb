"""Where the processes of one launch find each other: a socket of this machine that has no file and no port."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any, BinaryIO

from qlora_cli.errors import ArgumentError, QloraError
from qlora_cli.train.launch import Launch

SECONDS_ALONE = 25.0
"""How long the others may take to start; they need a fifth of a second, since nothing heavy is imported before."""

SECONDS_WITH_AGENT = 300.0
"""The same where a launcher ends all processes when one of them dies."""

RETRY_SECONDS = 0.05


@dataclass(frozen=True)
class Peer:
    """A connection to another process of the launch."""

    rank: int
    pid: int
    connection: socket.socket
    lines: BinaryIO
    """What it says, one JSON object a line."""

    def say(self, message: dict[str, Any]) -> None:
        """Send a message; to a process that has ended, nothing is sent."""
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")


def meet(launch: Launch) -> list[Peer]:
    """Connections of rank 0 to each other process, or of another process to rank 0.

    Raises:
        ArgumentError: if another process does not come, or another launch uses the same name.
    """
    seconds = SECONDS_WITH_AGENT if launch.has_agent else SECONDS_ALONE
    deadline = time.monotonic() + seconds
    return _receive(launch, deadline) if launch.rank == 0 else [_visit(launch, deadline)]


def _address(launch: Launch) -> str:
    """A name beginning with a zero byte is in Linux's abstract namespace: no file, gone with its process."""
    digest = hashlib.sha256(f"{os.getuid()}/{launch.name}".encode()).hexdigest()
    return f"\0qlora-{digest[:32]}"


def _receive(launch: Launch, deadline: float) -> list[Peer]:
    peers: dict[int, Peer] = {}
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(_address(launch))
        except OSError as fault:
            raise ArgumentError(
                "another run is being started with the same MASTER_ADDR and MASTER_PORT",
                hint="choose another port: `torchrun --master-port 29501 ...`",
            ) from fault
        listener.listen(launch.num_ranks)
        while len(peers) < launch.num_ranks - 1:
            listener.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                error = _absent(sorted(set(range(1, launch.num_ranks)) - peers.keys()), launch)
                for peer in peers.values():
                    peer.say({"verdict": [error.exit_code, 0, None]})
                raise error from None
            arrived = _greeted(connection, deadline)
            if arrived is not None and arrived.rank not in peers and 0 < arrived.rank < launch.num_ranks:
                peers[arrived.rank] = arrived
    return list(peers.values())


def _greeted(connection: socket.socket, deadline: float) -> Peer | None:
    """The process that has connected, if it is one of this user's and says its rank."""
    pid, user = _owner(connection)
    connection.settimeout(max(deadline - time.monotonic(), 0.001))
    lines = connection.makefile("rb")
    try:
        rank = json.loads(lines.readline())["rank"]
    except (OSError, ValueError, KeyError, TypeError):
        rank = None
    if user != os.getuid() or not isinstance(rank, int):
        connection.close()
        return None
    connection.settimeout(None)
    return Peer(rank, pid, connection, lines)


def _visit(launch: Launch, deadline: float) -> Peer:
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(_address(launch))
        except OSError as fault:
            connection.close()
            if time.monotonic() > deadline:
                if launch.rank > 1:
                    raise SystemExit(ArgumentError.exit_code) from fault
                raise _absent([0], launch) from fault
            time.sleep(RETRY_SECONDS)
            continue
        pid, user = _owner(connection)
        if user != os.getuid():
            raise ArgumentError("another user's program answers in place of process 0", hint="choose another port")
        peer = Peer(0, pid, connection, connection.makefile("rb"))
        peer.say({"rank": launch.rank})
        return peer


def _owner(connection: socket.socket) -> tuple[int, int]:
    """Process id and user id of the other end, as the kernel knows them."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, user, _ = struct.unpack("3i", credentials)
    return pid, user


def _absent(ranks: list[int], launch: Launch) -> QloraError:
    missing = ", ".join(map(str, ranks))
    noun = "process" if len(ranks) == 1 else "processes"
    return ArgumentError(
        f"{noun} {missing} of {launch.num_ranks} did not come in time",
        hint=f"start all of them at once: `{launch.command} train RECIPE`",
    )
