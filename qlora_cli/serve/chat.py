"""A conversation in the terminal, or through a pipe: one line in, one answer out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TextIO

from qlora_cli import console
from qlora_cli.data.example import Message
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.errors import QloraError
from qlora_cli.model.tuned import Tuned
from qlora_cli.serve.generation import Answer, OnText, SamplingOptions, generate_answer, why_cut

HELP = """\
/help          lists the commands
/reset         forgets the conversation
/system TEXT   sets the system prompt and starts over; without TEXT there is none
/exit          leaves, as Ctrl-D does
Ctrl-C         ends an answer"""


class ChatSession:
    """Turns so far, and the model that continues them."""

    def __init__(self, tuned: Tuned, options: SamplingOptions, system: str = "") -> None:
        self.turns: list[Message] = []
        self.system = system
        """System prompt; empty for none."""
        self.tuned = tuned
        """The model that answers."""

        self._renderer = Renderer(tuned.tokenizer)
        self._options = options

    @property
    def max_new_tokens(self) -> int:
        """Longest answer in tokens."""
        return self._options.max_new_tokens

    def ask(self, text: str, on_text: OnText | None = None) -> Answer:
        """The answer to a user's turn. Both turns join the conversation; neither does when the turn is refused.

        Args:
            text: what the user says.
            on_text: called with each piece of the answer as soon as it is certain.

        Raises:
            ArgumentError, DataError: as `generate_answer`.
        """
        question = {"role": "user", "content": text}
        opening = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*opening, *self.turns, question]
        answer = generate_answer(self.tuned, self._renderer, messages, self._options, on_text or _keep_quiet)
        self.turns += [question, {"role": "assistant", "content": answer.text}]
        return answer


def _keep_quiet(text: str) -> None:
    """For an answer that is wanted whole."""


def chat(session: ChatSession, lines: Iterable[str], on_text: OnText) -> None:
    """Answer each line until the lines end or one says /exit."""
    for line in lines:
        text = line.strip()
        command, _, argument = text.partition(" ")
        if command in ("/exit", "/quit"):
            return
        if command in CHAT_COMMANDS:
            console.note(CHAT_COMMANDS[command](session, argument.strip()))
        elif text.startswith("/"):
            console.note(f"there is no command {command}; /help lists those there are")
        elif text:
            _answer(session, text, on_text)


def _answer(session: ChatSession, text: str, on_text: OnText) -> None:
    try:
        answer = session.ask(text, on_text)
    except QloraError as error:
        console.show_error(error)
        return
    on_text("\n")
    if answer.stopped_by == "length":
        console.note(why_cut(answer, session.max_new_tokens))


def _reset(session: ChatSession, _argument: str) -> str:
    session.turns.clear()
    return "the conversation starts over"


def _set_system(session: ChatSession, argument: str) -> str:
    session.turns.clear()
    session.system = argument
    return "the conversation starts over with that system prompt" if argument else "no system prompt from here on"


def _show_help(_session: ChatSession, _argument: str) -> str:
    return HELP


CHAT_COMMANDS: dict[str, Callable[[ChatSession, str], str]] = {
    "/help": _show_help,
    "/reset": _reset,
    "/system": _set_system,
}
"""Command -> what it does and says."""


def read_lines(stream: TextIO) -> Iterator[str]:
    """Lines of a pipe as they come; from a terminal with a prompt, editing and history.

    Ctrl-C at the prompt clears the line; the end of input (Ctrl-D) ends the lines.
    """
    if not stream.isatty():
        yield from stream
        return
    import readline  # noqa: F401 - importing it gives `input` its line editing and history

    while True:
        try:
            yield input("> ")
        except EOFError:
            return
        except KeyboardInterrupt:
            console.note("\n/exit leaves")
