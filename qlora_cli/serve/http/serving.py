"""What the handlers of a server share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from qlora_cli.data.render.answer_frame import AnswerFrame
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.errors import QloraError
from qlora_cli.serve.engine.requests import Engine, GenerationRequest, QueueFull, Ticket
from qlora_cli.serve.http.answer_parts import AnswerParts
from qlora_cli.serve.http.asked import Asked, ChatAsked
from qlora_cli.serve.http.faults import ApiFault, of_error
from qlora_cli.serve.http.limits import HttpLimits
from qlora_cli.serve.http.metrics import Metrics
from qlora_cli.serve.http.prompts import Prompts
from qlora_cli.serve.http.tool_format import find_tool_format

CLOSING = "the server is closing"


@dataclass(frozen=True)
class Access:
    """Who may ask."""

    api_key: str = field(default="", repr=False)
    """Key that clients send; empty for none."""

    hosts: frozenset[str] | None = None
    """Names by which the server may be addressed; None for any. A page of another site whose name leads here, as in
    DNS rebinding, has another name."""

    origins: frozenset[str] = frozenset()
    """Other sites whose pages may ask, as `https://example.org`; `*` for all."""


class Serving:
    """An engine with what turns requests into its prompts and its text into answers."""

    def __init__(self, engine: Engine, renderer: Renderer, access: Access, limits: HttpLimits) -> None:
        self.engine = engine
        self.access = access
        self.limits = limits
        self.metrics = Metrics()
        self.created = int(time.time())
        self.is_closing = False
        """Whether new requests are refused, since a stop signal has come."""

        self._frame = renderer.answer_frame
        self._tool_format = find_tool_format(renderer)
        self._prompts = Prompts(renderer)

    async def start(self, asked: Asked) -> Ticket:
        """Hand a request to the engine.

        Raises:
            ApiFault: 400 for a prompt that cannot be answered, 429 where too many wait, 503 while closing.
        """
        self.refuse_while_closing()
        prompt_ids = await self._prompts.ids_of(asked)
        sampling = asked.sampling
        request = GenerationRequest(
            prompt_ids,
            asked.model,
            sampling.max_new_tokens or self.limits.default_new_tokens,
            sampling.temperature,
            sampling.top_p,
            sampling.seed,
            sampling.stop,
            sampling.num_top_logprobs,
        )
        try:
            return self.engine.submit(request)
        except QueueFull as full:
            raise ApiFault(429, "too many requests wait already; ask again later", code="queue_full") from full
        except QloraError as error:
            self.refuse_while_closing()
            is_chat = isinstance(asked, ChatAsked)
            raise of_error(error, "messages" if is_chat else "prompt") from error

    def refuse_while_closing(self) -> None:
        """Take on nothing new.

        Raises:
            ApiFault: 503.
        """
        if self.is_closing:
            raise ApiFault(503, CLOSING, code="closing")

    def parts_for(self, asked: Asked) -> AnswerParts:
        """What takes the answer to a request apart. Plain text stays whole, and so do stop texts' answers' ends."""
        if not isinstance(asked, ChatAsked):
            return AnswerParts(AnswerFrame())
        names = frozenset(str(tool["function"]["name"]) for tool in asked.tools)
        return AnswerParts(self._frame, self._tool_format if names else None, names)
