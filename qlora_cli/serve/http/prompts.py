"""From what a client asks to the tokens that the model gets: the exact prefix of a row that was trained."""

from __future__ import annotations

import asyncio
import threading

from qlora_cli.constants import IGNORE_INDEX
from qlora_cli.data.example import Message, PlainText
from qlora_cli.data.render.generation_prompt import Tools
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.errors import QloraError
from qlora_cli.serve.http.asked import HERE, Asked, ChatAsked, CompletionAsked
from qlora_cli.serve.http.faults import bad_field, of_error


class Prompts:
    """Renders one request at a time, beside the loop that serves."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._alone = threading.Lock()

    async def ids_of(self, asked: Asked) -> tuple[int, ...]:
        """Tokens of a request's prompt.

        Raises:
            ApiFault: 400, if the chat template refuses the messages, or a text cannot be tokenized.
        """
        return await asyncio.to_thread(self._ids_of, asked)

    def _ids_of(self, asked: Asked) -> tuple[int, ...]:
        if isinstance(asked, ChatAsked):
            return self._guarded(list(asked.messages), list(asked.tools) or None)
        assert isinstance(asked, CompletionAsked)
        if not isinstance(asked.prompt, str):
            return asked.prompt
        ids = self._of_text(asked.prompt)
        if not ids:
            raise bad_field("prompt", "is empty, and the model has no token to begin a text with")
        return ids

    def _guarded(self, messages: list[Message], tools: Tools) -> tuple[int, ...]:
        try:
            with self._alone:
                return tuple(self._renderer.prompt_ids(messages, tools))
        except QloraError as error:
            raise of_error(error, "messages") from error

    def _of_text(self, text: str) -> tuple[int, ...]:
        """Plain text as training has it before its completion: with the token that begins a document."""
        try:
            with self._alone:
                [row] = self._renderer.render([PlainText(text, "", HERE)])
        except QloraError as error:
            raise of_error(error, "prompt") from error
        trained = (at for at, label in enumerate(row.labels) if label != IGNORE_INDEX)
        return tuple(row.input_ids[: next(trained, len(row.input_ids))])
