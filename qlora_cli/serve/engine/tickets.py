"""An answer that is being made, seen by the one who asked: pieces come in from the worker, go out to any thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import SimpleQueue

from qlora_cli.serve.engine.requests import Finish, Piece


class QueuedTicket:
    """Events of one answer, in order."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """
        Args:
            wake: tells the worker that there is something to look at.
        """
        self.is_cancelled = False
        """Whether the one who asked has given the place up."""

        self._wake = wake
        self._events: SimpleQueue[Piece | Finish] = SimpleQueue()

    def put(self, event: Piece | Finish) -> None:
        """Called by the worker; a Finish is the last."""
        self._events.put(event)

    def events(self) -> Iterator[Piece | Finish]:
        """Pieces as they come, then one Finish. Whoever stops looking before it gives the place up."""
        is_finished = False
        try:
            while not is_finished:
                event = self._events.get()
                is_finished = isinstance(event, Finish)
                yield event
        finally:
            if not is_finished:
                self.cancel()

    def cancel(self) -> None:
        """Give the place up; an answer that is finished stays as it is."""
        self.is_cancelled = True
        self._wake()
