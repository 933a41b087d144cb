"""Answers in the words of OpenAI's API: whole bodies, and the chunks of a stream."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from qlora_cli.serve.engine.requests import Finish, Piece, TokenLogprob
from qlora_cli.serve.http.answer_parts import Part
from qlora_cli.serve.http.tool_format import Call, arguments_text

Json = dict[str, Any]

LEAST_LOGPROB = -9999.0
"""Stands for a token that is impossible, as in OpenAI's API."""


@dataclass(frozen=True)
class Heading:
    """What all chunks of an answer share."""

    model: str
    kind: str
    """`chat.completion` or `text_completion`."""

    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def around(self, choices: list[Json], *, kind: str = "", **more: Any) -> Json:
        """A body with these choices."""
        head = {"id": self.id, "object": kind or self.kind, "created": self.created, "model": self.model}
        return head | {"choices": choices} | more


def usage_of(finish: Finish) -> Json:
    """Tokens of a request and its answer."""
    total = finish.num_prompt_tokens + finish.num_new_tokens
    return {
        "prompt_tokens": finish.num_prompt_tokens,
        "completion_tokens": finish.num_new_tokens,
        "total_tokens": total,
    }


class ChatTelling:
    """An answer of `/v1/chat/completions`."""

    def __init__(self, model: str, has_logprobs: bool) -> None:
        self.heading = Heading(model, "chat.completion")
        self._has_logprobs = has_logprobs
        self._num_calls = 0

    def opening(self) -> Json:
        """The first chunk of a stream."""
        return self._chunk({"role": "assistant", "content": ""})

    def chunk(self, part: Part, pieces: list[Piece]) -> Json | None:
        """The chunk of a part; None where there is nothing to tell."""
        delta: Json = {"content": part.content} if part.content else {}
        if part.reasoning:
            delta["reasoning_content"] = part.reasoning
        if part.calls:
            delta["tool_calls"] = [
                {"index": self._num_calls + number, **_call(call)} for number, call in enumerate(part.calls)
            ]
            self._num_calls += len(part.calls)
        logprobs = [entry for piece in pieces for entry in _chat_logprobs(piece)]
        if not delta and not logprobs:
            return None
        return self._chunk(delta, {"content": logprobs, "refusal": None} if self._has_logprobs else None)

    def closing(self, finish: Finish) -> Json:
        """The chunk that ends an answer."""
        return self._chunk({}, None, _reason(finish, self._num_calls))

    def usage(self, finish: Finish) -> Json:
        """The last chunk, where usage is wanted."""
        return self.heading.around([], kind="chat.completion.chunk", usage=usage_of(finish))

    def whole(self, parts: list[Part], pieces: list[Piece], finish: Finish) -> Json:
        """The body of an answer that is not streamed."""
        content = "".join(part.content for part in parts)
        reasoning = "".join(part.reasoning for part in parts)
        calls = [_call(call) for part in parts for call in part.calls]
        message: Json = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = calls
        entries = [entry for piece in pieces for entry in _chat_logprobs(piece)]
        choice = {
            "index": 0,
            "message": message,
            "logprobs": {"content": entries, "refusal": None} if self._has_logprobs else None,
            "finish_reason": _reason(finish, len(calls)),
        }
        return self.heading.around([choice], usage=usage_of(finish))

    def _chunk(self, delta: Json, logprobs: Json | None = None, reason: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self.heading.around([choice], kind="chat.completion.chunk")


def _reason(finish: Finish, num_calls: int) -> str:
    """Why an answer ended; one that was cut is no finished call, streamed or not (vllm-project/vllm#53269)."""
    return "tool_calls" if num_calls and finish.reason == "stop" else finish.reason


class CompletionTelling:
    """An answer of `/v1/completions`; a chunk is a body with a part of the text."""

    def __init__(self, model: str, has_logprobs: bool) -> None:
        self.heading = Heading(model, "text_completion")
        self._has_logprobs = has_logprobs
        self._num_characters = 0

    def opening(self) -> None:
        """There is nothing to tell before the first text."""

    def chunk(self, part: Part, pieces: list[Piece]) -> Json | None:
        """As of `ChatTelling`."""
        if not part.content and not any(piece.tokens for piece in pieces):
            return None
        return self.heading.around([self._choice(part.content, pieces, None)])

    def closing(self, finish: Finish) -> Json:
        """As of `ChatTelling`."""
        return self.heading.around([self._choice("", [], finish)])

    def usage(self, finish: Finish) -> Json:
        """As of `ChatTelling`."""
        return self.heading.around([], usage=usage_of(finish))

    def whole(self, parts: list[Part], pieces: list[Piece], finish: Finish) -> Json:
        """As of `ChatTelling`."""
        choice = self._choice("".join(part.content for part in parts), pieces, finish)
        return self.heading.around([choice], usage=usage_of(finish))

    def _choice(self, text: str, pieces: list[Piece], finish: Finish | None) -> Json:
        logprobs = self._logprobs(pieces) if self._has_logprobs else None
        return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish.reason if finish else None}

    def _logprobs(self, pieces: list[Piece]) -> Json:
        told: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for piece in pieces:
            for token, alternatives in zip(piece.tokens, piece.alternatives, strict=True):
                told["tokens"].append(token.text)
                told["token_logprobs"].append(_finite(token.logprob))
                told["top_logprobs"].append({one.text: _finite(one.logprob) for one in alternatives})
                told["text_offset"].append(self._num_characters)
                self._num_characters += len(token.text)
        return dict(told)


def _finite(logprob: float) -> float:
    """JSON has no infinity."""
    return max(logprob, LEAST_LOGPROB)


Telling = ChatTelling | CompletionTelling


def _call(call: Call) -> Json:
    name, arguments = call
    function = {"name": name, "arguments": arguments_text(arguments)}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def _chat_logprobs(piece: Piece) -> list[Json]:
    return [
        _entry(token) | {"top_logprobs": [_entry(one) for one in alternatives]}
        for token, alternatives in zip(piece.tokens, piece.alternatives, strict=True)
    ]


def _entry(token: TokenLogprob) -> Json:
    return {"token": token.text, "logprob": _finite(token.logprob), "bytes": list(token.text.encode(errors="replace"))}
