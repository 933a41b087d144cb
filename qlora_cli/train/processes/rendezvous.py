"""Where the processes of one launch find each other: a socket of this machine that has no file and no port."""

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

SECONDS_ALONE = 25.0
"""How long the others may take to start; they need a fifth of a second, since nothing heavy is imported before."""

SECONDS_WITH_AGENT = 300.0
"""The same where a launcher ends all processes when one of them dies."""

WAIT_SECONDS = 0.05
"""How long one look for another process takes."""


class Patience:
    """Time to wait, counted in looks: what passes while the system lets no process run counts as one of them."""

    def __init__(self, seconds: float) -> None:
        self._num_looks = math.ceil(seconds / WAIT_SECONDS)

    def spend(self) -> bool:
        """Whether there was another look left."""
        self._num_looks -= 1
        return self._num_looks >= 0

    def waits_for(self, source: socket.socket) -> bool:
        """Whether somebody has come, or something was said, before the time was over."""
        while self.spend():
            if select.select([source], [], [], WAIT_SECONDS)[0]:
                return True
        return False


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
    patience = Patience(seconds)
    return _receive(launch, patience) if launch.rank == 0 else [_visit(launch, patience)]


def _address(launch: Launch) -> str:
    """A name beginning with a zero byte is in Linux's abstract namespace: no file, gone with its process."""
    digest = hashlib.sha256(f"{os.getuid()}/{launch.name}".encode()).hexdigest()
    return f"\0qlora-{digest[:32]}"


def _receive(launch: Launch, patience: Patience) -> list[Peer]:
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
            if not patience.waits_for(listener):
                error = _absent(sorted(set(range(1, launch.num_ranks)) - peers.keys()), launch)
                for peer in peers.values():
                    peer.say({"verdict": [error.exit_code, 0, None]})
                raise error
            connection, _ = listener.accept()
            arrived = _greeted(connection, patience)
            if arrived is not None and arrived.rank not in peers and 0 < arrived.rank < launch.num_ranks:
                peers[arrived.rank] = arrived
    return list(peers.values())


def _greeted(connection: socket.socket, patience: Patience) -> Peer | None:
    """The process that has connected, if it is one of this user's and says its rank."""
    pid, user = _owner(connection)
    lines = connection.makefile("rb")
    rank = None
    if user == os.getuid() and patience.waits_for(connection):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            rank = json.loads(lines.readline())["rank"]
    if user != os.getuid() or not isinstance(rank, int):
        connection.close()
        return None
    return Peer(rank, pid, connection, lines)


def _visit(launch: Launch, patience: Patience) -> Peer:
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(_address(launch))
        except OSError as fault:
            connection.close()
            if not patience.spend():
                if launch.rank > 1:
                    raise SystemExit(ArgumentError.exit_code) from fault
                raise _absent([0], launch) from fault
            time.sleep(WAIT_SECONDS)
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
