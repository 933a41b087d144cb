"""Turns so far and whoever continues them: a model here, or one behind a URL."""

from __future__ import annotations

from collections.abc import Sequence

from qlora_cli.data.example import Message
from qlora_cli.data.render.answer_frame import AnswerFrame
from qlora_cli.errors import ArgumentError
from qlora_cli.serve.generation import Answer, OnText


class Conversation:
    """What chat needs of a session; how an answer is made is left to those derived from it."""

    def __init__(self, system: str = "") -> None:
        self.turns: list[Message] = []
        self.system = system
        """System prompt; empty for none."""

        self.frame = AnswerFrame()
        """Marks between reasoning and answer, where they are in the text."""

    @property
    def messages(self) -> list[Message]:
        """The turns behind the system prompt, where there is one."""
        opening: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        return [*opening, *self.turns]

    def ask(self, text: str, on_text: OnText | None = None) -> Answer:
        """The answer to a user's turn. Both turns join the conversation; neither does when the turn is refused.

        Args:
            text: what the user says.
            on_text: called with each piece of the answer as soon as it is certain.

        Raises:
            ArgumentError, DataError: as `generate_answer`.
        """
        question: Message = {"role": "user", "content": text}
        answer = self._answer([*self.messages, question], on_text or _keep_quiet, attempt=0)
        self.turns += [question, {"role": "assistant", "content": answer.text}]
        self._num_retries = 0
        return answer

    def retry(self, on_text: OnText | None = None) -> Answer:
        """Another answer to the last question, in place of the one that is there.

        With a seed it is the next one of that seed, so that a conversation with retries can be repeated too.

        Raises:
            ArgumentError: if there is no answer yet; else as `ask`, and the old answer stays.
        """
        if not self.turns:
            raise ArgumentError("there is no answer yet to try again", hint="ask something first")
        self._num_retries += 1
        answer = self._answer(self.messages[:-1], on_text or _keep_quiet, attempt=self._num_retries)
        self.turns[-1] = {"role": "assistant", "content": answer.text}
        return answer

    def reset(self) -> None:
        """Forget the turns; the system prompt stays."""
        self.turns.clear()

    def switch_base(self) -> str:
        """Answer without the adapter from now on, or with it again; the turns stay.

        Returns:
            Who answers now, in a sentence.

        Raises:
            ArgumentError: where that cannot be had, with the reason.
        """
        raise NotImplementedError

    def why_cut(self, answer: Answer) -> str:
        """Reason why an answer was cut, and what lets it continue."""
        raise NotImplementedError

    _num_retries = 0

    def _answer(self, messages: Sequence[Message], on_text: OnText, attempt: int) -> Answer:
        """The next turn.

        Args:
            messages: the conversation, ending with the user's turn.
            on_text: as in `ask`.
            attempt: how many answers to the same question came before.
        """
        raise NotImplementedError


def _keep_quiet(text: str) -> None:
    """For an answer that is wanted whole."""
