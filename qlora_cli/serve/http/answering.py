"""One answer on its way to a client: whole or as a stream; a client that goes away gives its place up."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from qlora_cli.serve.engine.requests import Finish, Piece, Ticket
from qlora_cli.serve.http.answer_parts import Part
from qlora_cli.serve.http.asked import Asked, ChatAsked
from qlora_cli.serve.http.faults import ApiFault
from qlora_cli.serve.http.serving import CLOSING, Serving
from qlora_cli.serve.http.telling import ChatTelling, CompletionTelling, Json, Telling

JSON_HEADERS = [(b"content-type", b"application/json")]
STREAM_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]


async def heard(ticket: Ticket, seconds: float) -> AsyncIterator[Piece | Finish]:
    """Events of an answer, which a thread waits for. The place is given up when nobody listens any more.

    Args:
        ticket: of the answer.
        seconds: that it may take in all.

    Raises:
        ApiFault: 504 after that time.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Piece | Finish] = asyncio.Queue()

    def listen() -> None:
        for event in ticket.events():
            try:
                loop.call_soon_threadsafe(queue.put_nowait, event)
            except RuntimeError:  # the loop has ended, and whoever listened with it
                return

    threading.Thread(target=listen, name="answer", daemon=True).start()
    until = loop.time() + seconds
    event: Piece | Finish | None = None
    try:
        while not isinstance(event, Finish):
            async with asyncio.timeout_at(until):
                event = await queue.get()
            yield event
    except TimeoutError:
        raise ApiFault(504, f"the answer took longer than {seconds:g} seconds", code="timeout") from None
    finally:
        ticket.cancel()


class AnswerResponse(Response):
    """Sends an answer while it is made."""

    def __init__(self, serving: Serving, asked: Asked, ticket: Ticket) -> None:
        """
        Args:
            serving: the server.
            asked: the request.
            ticket: its answer.
        """
        super().__init__()
        self._serving = serving
        self._asked = asked
        self._ticket = ticket
        self._parts = serving.parts_for(asked)
        has_logprobs = asked.sampling.num_top_logprobs is not None
        kind = ChatTelling if isinstance(asked, ChatAsked) else CompletionTelling
        self._telling: Telling = kind(asked.model, has_logprobs)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As starlette calls a response."""
        telling = asyncio.ensure_future(self._tell(send))
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait({telling, gone}, return_when=asyncio.FIRST_COMPLETED)
            if telling.done():
                await telling
        finally:
            self._ticket.cancel()
            telling.cancel()
            gone.cancel()
            await asyncio.gather(telling, gone, return_exceptions=True)

    async def _tell(self, send: Send) -> None:
        events = heard(self._ticket, self._serving.limits.answer_seconds)
        try:
            if self._asked.is_streamed:
                await self._tell_stream(send, events)
            else:
                await self._tell_whole(send, events)
        finally:
            await events.aclose()  # type: ignore[attr-defined]

    async def _tell_whole(self, send: Send, events: AsyncIterator[Piece | Finish]) -> None:
        parts: list[Part] = []
        pieces: list[Piece] = []
        async for event in events:
            if isinstance(event, Finish):
                self._check(event)
                body = self._telling.whole([*parts, self._parts.finish()], pieces, event)
                await self._send(send, {"type": "http.response.start", "status": 200, "headers": JSON_HEADERS})
                await self._send(send, {"type": "http.response.body", "body": as_json(body)})
            else:
                pieces.append(event)
                parts.append(self._parts.push(event.text))

    async def _tell_stream(self, send: Send, events: AsyncIterator[Piece | Finish]) -> None:
        is_begun = False
        try:
            async for event in events:
                if isinstance(event, Finish):
                    self._check(event)
                if not is_begun:
                    # Not before the first event: what fails until then has a status of its own.
                    is_begun = True
                    await self._send(send, {"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
                    await self._chunk(send, self._telling.opening())
                if isinstance(event, Finish):
                    await self._close(send, event)
                else:
                    await self._chunk(send, self._telling.chunk(self._parts.push(event.text), [event]))
        except ApiFault as fault:
            if not is_begun:
                raise
            await self._chunk(send, fault.body)
            await self._end(send)

    async def _close(self, send: Send, finish: Finish) -> None:
        await self._chunk(send, self._telling.chunk(self._parts.finish(), []))
        await self._chunk(send, self._telling.closing(finish))
        if self._asked.is_usage_wanted:
            await self._chunk(send, self._telling.usage(finish))
        await self._end(send)

    async def _end(self, send: Send) -> None:
        await self._send(send, {"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def _chunk(self, send: Send, chunk: Json | None) -> None:
        if chunk is not None:
            body = b"data: " + as_json(chunk) + b"\n\n"
            await self._send(send, {"type": "http.response.body", "body": body, "more_body": True})

    async def _send(self, send: Send, message: Message) -> None:
        async with asyncio.timeout(self._serving.limits.send_seconds):
            await send(message)

    def _check(self, finish: Finish) -> None:
        if finish.reason == "failed":
            if self._serving.is_closing:
                raise ApiFault(503, CLOSING, code="closing")
            raise ApiFault(500, finish.error or "the answer could not be made", code="engine_failed")


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def as_json(value: Any) -> bytes:
    """JSON as it is sent. A model's text may hold halves of surrogate pairs, which UTF-8 cannot."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode(errors="replace")
