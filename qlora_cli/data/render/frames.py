"""What a template prints around the content of a turn, remembered, so that most rows need no second rendering.

A turn that is a known frame with the message's content in it holds that content whole:

    <|im_start|>user\\n | What is 2 + 2? | <|im_end|>\\n

Frames are learned from turns in which marks showed the content (`placement.py`). A turn that fits none says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qlora_cli.data.example import Message
from qlora_cli.data.render.leaves import Kind
from qlora_cli.data.render.mask import Answer
from qlora_cli.data.render.placement import Places
from qlora_cli.data.render.traced_template import Trace

MAX_FRAMES = 16
"""Of a role; a template has two or three (first turn, last turn)."""

_KEYS = {"role", "content"}
_KEYS_OF_QUESTIONS = {"role", "content", "instruction", "input"}  # two parts, which the content joins


class Frames:
    """The frames of one template."""

    def __init__(self) -> None:
        self._of_role: dict[str, list[tuple[str, str]]] = {}

    def hold(self, trace: Trace, messages: Sequence[Message], answers: Sequence[Answer]) -> bool:
        """Whether each message is a content in a known frame, those of the assistant inside of its answer."""
        spans: Mapping[int | None, Answer] = {answer.turn: answer for answer in answers}
        for index, message in enumerate(messages):
            content = message.get("content")
            if message.keys() != _KEYS and message.keys() != _KEYS_OF_QUESTIONS:
                return False
            if not isinstance(content, str) or index not in trace.turns:
                return False
            at = self._place(trace, index, message["role"], content)
            if at is None:
                return False
            if message["role"] == "assistant":
                answer = spans.get(index)
                if answer is None or at < answer.start or at + len(content) > answer.end:
                    return False
        return True

    def _place(self, trace: Trace, index: int, role: str, content: str) -> int | None:
        """Where the content stands in its turn, if that is a known frame with it."""
        start, end = trace.turns[index]
        for head, tail in self._of_role.get(role, ()):
            at = start + len(head)
            if (
                at + len(content) + len(tail) == end
                and trace.text.startswith(content, at)
                and trace.text.startswith(head, start)
                and trace.text.endswith(tail, 0, end)
            ):
                return at
        return None

    def learn(self, trace: Trace, messages: Sequence[Message], places: Places) -> None:
        """Take in the frames of turns that hold one content and nothing else of the conversation."""
        within: dict[int, list[int]] = {}  # message -> leaves that stand in its turn
        for number, found in enumerate(places.of):
            for start, end in found:
                owner = places.leaves[number].owner
                if owner not in trace.turns or not places.is_certain[number]:
                    return
                first, last = trace.turns[owner]
                if start < first or end > last:
                    return  # printed in another's turn, whose frame would then hold this text
                within.setdefault(owner, []).append(number)
        for owner, numbers in within.items():
            leaf, message = places.leaves[numbers[0]], messages[owner]
            if len(numbers) > 1 or leaf.kind != Kind.CONTENT or message.keys() != _KEYS:
                continue
            if message["content"] != leaf.text:
                continue
            [(start, end)] = places.of[numbers[0]]
            first, last = trace.turns[owner]
            frame = (trace.text[first:start], trace.text[end:last])
            frames = self._of_role.setdefault(message["role"], [])
            if frame not in frames and len(frames) < MAX_FRAMES:
                frames.append(frame)
