"""An answer taken apart while it arrives: reasoning, text, and tool calls."""

from __future__ import annotations

from dataclasses import dataclass, field

from qlora_cli.data.render.answer_frame import AnswerFrame
from qlora_cli.serve.http.tool_format import Call, ToolFormat
from qlora_cli.serve.reasoning import Part as SplitPart
from qlora_cli.serve.reasoning import ReasoningSplitter


@dataclass(frozen=True)
class Part:
    """What a client is told next."""

    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)


class AnswerParts:
    """Takes the text of an answer piece by piece; nothing is told before it is certain what it is."""

    def __init__(
        self, frame: AnswerFrame, tool_format: ToolFormat | None = None, tool_names: frozenset[str] = frozenset()
    ) -> None:
        """
        Args:
            frame: marks of reasoning; empty ones take nothing apart.
            tool_format: how calls are printed; None reads none.
            tool_names: tools of the request; JSON that calls none of them is text, where no mark says otherwise.
        """
        self._splitter = ReasoningSplitter(frame)
        self._tool_format = tool_format
        self._tool_names = tool_names
        self._held = ""
        self._has_calls = False

    def push(self, text: str) -> Part:
        """What has become certain with this text."""
        reasoning = self._take(self._splitter.push(text))
        return Part(self._certain_content(), reasoning)

    def finish(self) -> Part:
        """The rest, where no text follows."""
        reasoning = self._take(self._splitter.finish())
        rest, self._held = self._held, ""
        tool_format = self._tool_format
        read = tool_format.read(rest) if tool_format is not None else None
        if tool_format is None or read is None:
            return Part(rest, reasoning)
        is_call = bool(tool_format.opening) or {name for name, _ in read[1]} <= self._tool_names
        return Part(read[0], reasoning, read[1]) if is_call else Part(rest, reasoning)

    def _take(self, parts: list[SplitPart]) -> str:
        """Keep what belongs to the answer, and give the reasoning."""
        self._held += "".join(part.text for part in parts if not part.is_reasoning)
        return "".join(part.text for part in parts if part.is_reasoning)

    def _certain_content(self) -> str:
        if self._has_calls or not self._held:
            return ""
        if self._tool_format is None:
            content, self._held = self._held, ""
            return content
        at = self._tool_format.may_open(self._held)
        if self._tool_format.opening:
            # White space before a call belongs to the template, and a call may follow.
            at = len(self._held[:at].rstrip())
        elif at:
            self._tool_format = None  # a call without marks is the whole answer, or there is none
        self._has_calls = (
            self._tool_format is not None and self._tool_format.opening in self._held[at:] and at < len(self._held)
        )
        content, self._held = self._held[:at], self._held[at:]
        return content
