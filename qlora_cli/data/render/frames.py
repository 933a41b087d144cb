"""Texts that a template prints around the content of a turn, cached, so that most rows are rendered once.

A turn that is a known frame with the message's content in it holds that content complete:

    <|im_start|>user\\n | What is 2 + 2? | <|im_end|>\\n

Frames are learned from turns in which marks showed the content (`placement.py`). A turn that fits none says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qlora_cli.data.example import Message
from qlora_cli.data.render.leaves import LeafKind
from qlora_cli.data.render.mask import AnswerSpan
from qlora_cli.data.render.placement import Places
from qlora_cli.data.render.traced_template import RenderTrace, Span

MAX_FRAMES = 16
"""Of a role; a template has two or three (first turn, last turn)."""

_KEYS = {"role", "content"}
_KEYS_OF_QUESTIONS = {"role", "content", "instruction", "input"}  # two parts, which the content joins


class Frames:
    """The frames of one template."""

    def __init__(self) -> None:
        self._of_role: dict[str, list[tuple[str, str]]] = {}
        """Role -> the texts before and after the content."""

    def hold(self, trace: RenderTrace, messages: Sequence[Message], answers: Sequence[AnswerSpan]) -> bool:
        """Whether each message is a content in a known frame, those of the assistant inside of its answer."""
        answer_of: Mapping[int | None, AnswerSpan] = {answer.turn: answer for answer in answers}
        for index, message in enumerate(messages):
            content = message.get("content")
            if (len(message) != 2 and message.keys() != _KEYS_OF_QUESTIONS) or not isinstance(content, str):
                return False
            if (span := trace.turns.get(index)) is None:
                return False
            at = self._place(trace.text, span, message["role"], content)
            if at is None:
                return False
            if message["role"] == "assistant":
                answer = answer_of.get(index)
                if answer is None or at < answer.start or at + len(content) > answer.end:
                    return False
        return True

    def _place(self, text: str, turn: Span, role: str, content: str) -> int | None:
        """Position of the content in its turn, if the turn is a known frame around it."""
        start, end = turn
        room = end - start - len(content)
        for head, tail in self._of_role.get(role, ()):
            if len(head) + len(tail) == room and text[start:end] == head + content + tail:
                return start + len(head)
        return None

    def learn(self, trace: RenderTrace, messages: Sequence[Message], places: Places) -> None:
        """Take in the frames of turns that hold one content and nothing else of the conversation."""
        within: dict[int, list[int]] = {}  # message -> leaves in its turn
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
            if len(numbers) > 1 or leaf.kind != LeafKind.CONTENT or message.keys() != _KEYS:
                continue
            if message["content"] != leaf.text:
                continue
            [(start, end)] = places.of[numbers[0]]
            first, last = trace.turns[owner]
            frame = (trace.text[first:start], trace.text[end:last])
            frames = self._of_role.setdefault(message["role"], [])
            if frame not in frames and len(frames) < MAX_FRAMES:
                frames.append(frame)
