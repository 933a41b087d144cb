"""An answer taken apart while it arrives: reasoning, text, and tool calls."""

from __future__ import annotations

from dataclasses import dataclass, field

from qlora_cli.data.render.answer_frame import AnswerFrame
from qlora_cli.serve.decoding import length_of_start
from qlora_cli.serve.http.tool_format import Call, ToolFormat


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
        self._tool_names = tool_names
        self._frame = frame
        self._tool_format = tool_format
        self._held = ""
        self._is_reasoning = bool(frame.closing and frame.opens_in_prompt)
        self._may_open = bool(frame.closing or frame.lead)
        self._is_first = True  # of the text behind reasoning: its leading white space is the template's
        self._has_calls = False

    def push(self, text: str) -> Part:
        """What has become certain with this text."""
        self._held += text
        if self._may_open and not self._opened():
            return Part()
        reasoning = ""
        if self._is_reasoning:
            reasoning = self._take_reasoning()
            if self._is_reasoning:
                return Part(reasoning=reasoning)
        return Part(self._take_content(), reasoning)

    def finish(self) -> Part:
        """The rest, where no text follows."""
        if self._is_reasoning:
            rest, self._held = self._held, ""
            return Part(reasoning=rest)
        rest = self._first_text(self._held)
        self._held = ""
        tool_format = self._tool_format
        read = tool_format.read(rest) if tool_format is not None else None
        if tool_format is None or read is None:
            return Part(rest)
        is_call = bool(tool_format.opening) or {name for name, _ in read[1]} <= self._tool_names
        return Part(read[0], calls=read[1]) if is_call else Part(rest)

    def _opened(self) -> bool:
        """Whether it is certain how the answer begins; what the template prints there is taken off."""
        begun = self._held.lstrip()
        marks = [mark for mark in (self._frame.lead, self._frame.opening) if mark]
        if any(len(begun) < len(mark) and mark.startswith(begun) for mark in marks) or not begun:
            return False
        self._may_open = False
        if self._frame.lead and begun.startswith(self._frame.lead) and not self._is_reasoning:
            self._held = begun[len(self._frame.lead) :]
        elif self._frame.opening and self._frame.closing and begun.startswith(self._frame.opening):
            self._held = begun[len(self._frame.opening) :].lstrip("\n")
            self._is_reasoning = True
        else:
            self._is_first = self._is_reasoning
        return True

    def _take_reasoning(self) -> str:
        closing = self._frame.closing
        at = self._held.find(closing)
        if at >= 0:
            reasoning, self._held = self._held[:at], self._held[at + len(closing) :]
            self._is_reasoning = False
            return reasoning.rstrip("\n")
        kept = self._held[: len(self._held) - length_of_start(self._held, closing)].rstrip("\n")
        reasoning, self._held = kept, self._held[len(kept) :]
        return reasoning

    def _take_content(self) -> str:
        self._held = self._first_text(self._held)
        if self._has_calls or (self._is_first and not self._held):
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

    def _first_text(self, text: str) -> str:
        if not self._is_first:
            return text
        text = text.lstrip() if self._frame.closing or self._frame.lead else text
        self._is_first = not text
        return text
