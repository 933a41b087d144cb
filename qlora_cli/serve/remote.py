"""A conversation with a model behind an OpenAI-compatible URL, streamed."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, build_opener

from qlora_cli.chat_server import (
    NoRedirects,
    ServerNames,
    headers_with,
    key_in,
    message_in,
    one_line,
    refused,
    server_url,
)
from qlora_cli.data.example import Message
from qlora_cli.data.render.answer_frame import REASONING_KEYS, AnswerFrame
from qlora_cli.errors import ArgumentError, ResourceError
from qlora_cli.serve.conversation import Conversation
from qlora_cli.serve.generation import Answer, OnText, SamplingOptions, StopReason

KEY_VARIABLE = "QLORA_CHAT_API_KEY"
"""Environment variable of the key; a name of its own, so that no key goes to a server that it was not meant for."""

THINK = AnswerFrame(opening="<think>", closing="</think>")
"""Marks of reasoning that a server leaves in the text, and those that its own reasoning is put between here."""

SILENCE_SECONDS = 300.0
"""So long nothing may come from a server; a long prompt on a slow one takes minutes."""

STREAMS = "is it a server with the OpenAI chat API, and does the URL end with /v1?"

LONGEST_LINE = 1024 * 1024
LONGEST_REFUSAL = 65_536


class RemoteSession(Conversation):
    """Turns so far, and the server that continues them.

    Args:
        url: up to `/v1`.
        model: name that the server knows; the only one that it has when None.
        options: how tokens are chosen.
        system: system prompt; empty for none.

    Raises:
        ArgumentError: the URL is none, the server refuses the key, or it has several models and none was named.
        ResourceError: it does not answer.
    """

    def __init__(self, url: str, model: str | None, options: SamplingOptions, system: str = "") -> None:
        super().__init__(system)
        self.frame = THINK
        self._url = server_url(url, KEY_VARIABLE)
        self._options = options
        self._key = key_in(KEY_VARIABLE)
        self._opener = build_opener(NoRedirects)
        self.model = model or self._only_model()
        """The model that answers."""

    def switch_base(self) -> str:
        """See `Conversation`."""
        raise ArgumentError(
            "a server has base and adapters under names of their own",
            place=self._url,
            hint=f"`qlora chat --url {self._url} --model NAME` talks with another",
        )

    def why_cut(self, answer: Answer) -> str:
        """See `Conversation`."""
        longest = self._options.max_new_tokens
        return f"cut by the server; `--max-new-tokens {2 * longest}` lets it continue where its context has room"

    def _answer(self, messages: Sequence[Message], on_text: OnText, attempt: int) -> Answer:
        options, start = self._options, perf_counter()
        body = {
            "model": self.model,
            "messages": list(messages),
            "temperature": options.temperature,
            "top_p": options.top_p,
            "max_tokens": options.max_new_tokens,
            "stream": True,
        }
        if options.seed is not None:
            body["seed"] = options.seed + attempt
        pieces, num_chunks = _Pieces(on_text), 0
        stopped_by: StopReason = "end_of_turn"
        try:
            for chunk in self._chunks(body):
                num_chunks += 1
                if pieces.take(chunk) == "length":
                    stopped_by = "length"
        except KeyboardInterrupt:
            stopped_by = "interrupt"
        if num_chunks == 0 and stopped_by != "interrupt":
            raise ResourceError("the server sent no chat completion", place=self._url, hint=STREAMS)
        text = pieces.finish()
        return Answer(text, 0, pieces.num_pieces, perf_counter() - start, stopped_by, f"the server at {self._url}")

    def _chunks(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Chunks of a streamed chat completion (server-sent events)."""
        with self._opened("/chat/completions", json.dumps(body).encode()) as response:
            try:
                while line := response.readline(LONGEST_LINE):
                    name, _, value = line.strip().partition(b":")
                    if name != b"data" or value.strip() == b"[DONE]":
                        continue
                    yield self._chunk(value)
            except (OSError, http.client.HTTPException) as fault:
                raise self._silent(fault) from None

    def _chunk(self, value: bytes) -> dict[str, Any]:
        try:
            chunk = json.loads(value)
        except (ValueError, RecursionError):
            chunk = None
        if not isinstance(chunk, dict):
            text = f"the server sent no chat completion: {one_line(value[:80])}"
            raise ResourceError(text, place=self._url, hint=STREAMS)
        if chunk.get("error"):
            raise ResourceError(f"the server gave up: {message_in(value)}", place=self._url, hint="ask again")
        return chunk

    def _only_model(self) -> str:
        with self._opened("/models", None) as response:
            try:
                names = [model["id"] for model in json.loads(response.read(LONGEST_LINE))["data"]]
            except (ValueError, KeyError, TypeError, RecursionError, OSError, http.client.HTTPException):
                names = []
        if len(names) != 1:
            has = f"has {len(names)} models: {one_line(', '.join(map(str, names)))}" if names else "names no models"
            raise ArgumentError(f"the server {has}", place=self._url, hint="choose one with --model NAME")
        return str(names[0])

    def _opened(self, path: str, body: bytes | None) -> Any:
        """The response to a request.

        Raises:
            ArgumentError: the server refuses.
            ResourceError: it does not answer.
        """
        request = Request(self._url + path, body, headers_with(self._key), method="GET" if body is None else "POST")
        try:
            return self._opener.open(request, timeout=SILENCE_SECONDS)
        except HTTPError as fault:
            with fault:
                try:
                    said = message_in(fault.read(LONGEST_REFUSAL))
                except (OSError, http.client.HTTPException):
                    said = ""
            names = ServerNames(self._url, getattr(self, "model", "") or "", KEY_VARIABLE)
            raise refused("the server", fault.code, said, names) from None
        except (URLError, http.client.HTTPException, OSError) as fault:
            raise self._silent(fault) from None

    def _silent(self, fault: Exception) -> ResourceError:
        reason = one_line(getattr(fault, "reason", None) or fault) or type(fault).__name__
        hint = "is it running, and is that its port? `qlora chat RUN` talks without a server"
        return ResourceError(f"the server does not answer: {reason}", place=self._url, hint=hint)


class _Pieces:
    """Text of the chunks; reasoning that a server sends apart is put between marks, as a template would print it."""

    def __init__(self, on_text: OnText) -> None:
        self.num_pieces = 0
        self._text = ""
        self._answer_start = 0
        self._is_reasoning = False
        self._on_text = on_text

    def take(self, chunk: dict[str, Any]) -> str | None:
        """Pass on what a chunk holds; returns why the answer ended, where it did."""
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        delta = choice.get("delta")
        delta = delta if isinstance(delta, dict) else {}
        reasoning = next((delta[key] for key in REASONING_KEYS if isinstance(delta.get(key), str) and delta[key]), "")
        content = delta.get("content")
        if reasoning:
            self._pass_on(reasoning if self._is_reasoning else THINK.opening + reasoning)
            self._is_reasoning = True
        if isinstance(content, str) and content:
            self._close()
            self._pass_on(content)
        reason = choice.get("finish_reason")
        return reason if isinstance(reason, str) else None

    def finish(self) -> str:
        """The answer without the reasoning that came apart, which a server does not want back."""
        if not self._is_reasoning:
            return self._text[self._answer_start :]
        return ""

    def _close(self) -> None:
        if self._is_reasoning:
            self._pass_on(THINK.closing)
            self._is_reasoning, self._answer_start = False, len(self._text)

    def _pass_on(self, text: str) -> None:
        self._text += text
        self.num_pieces += 1
        self._on_text(text)
