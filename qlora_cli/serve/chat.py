"""A conversation in the terminal, or through a pipe: a message in, an answer out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

from peft import PeftModel

from qlora_cli import console
from qlora_cli.data.example import Message
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.errors import ArgumentError, QloraError
from qlora_cli.model.tuned import Tuned
from qlora_cli.run.disk_errors import disk_error
from qlora_cli.serve.chat_commands import CHAT_COMMANDS
from qlora_cli.serve.chat_input import Said
from qlora_cli.serve.conversation import Conversation
from qlora_cli.serve.generation import Answer, OnText, SamplingOptions, generate_answer, why_cut
from qlora_cli.serve.reasoning import Part, ReasoningSplitter, visible_frame
from qlora_cli.serve.speaker import describe


class ChatSession(Conversation):
    """Turns so far, and the model that continues them."""

    def __init__(self, tuned: Tuned, options: SamplingOptions, system: str = "") -> None:
        super().__init__(system)
        self.tuned = tuned
        """The model that answers."""

        self.is_base = False
        """Whether the adapter is switched off."""

        self._renderer = Renderer(tuned.tokenizer)
        self._options = options
        self.frame = visible_frame(self._renderer.answer_frame, tuned.tokenizer)

    def switch_base(self) -> str:
        """See `Conversation`."""
        source = self.tuned.source
        if not isinstance(self.tuned.model, PeftModel):
            has_adapter = source.adapter is not None
            hint = "start again without --base" if has_adapter else "name a run directory or an adapter folder"
            raise ArgumentError("there is no adapter in memory to switch", hint=hint)
        if source.is_base_apart:
            raise ArgumentError(
                "with this adapter off the weights in memory are not the base: its init moved a part of them into it",
                hint=f"talk with the base in a chat of its own: `qlora chat {source.folder} --base`",
            )
        self.is_base = not self.is_base
        if self.is_base:
            return f"from here on base {source.model.base_model} answers, without the adapter; /base brings it back"
        return f"from here on {describe(self.tuned)} answers"

    def why_cut(self, answer: Answer) -> str:
        """See `Conversation`."""
        return why_cut(answer, self._options.max_new_tokens)

    def _answer(self, messages: Sequence[Message], on_text: OnText, attempt: int) -> Answer:
        seed = self._options.seed
        options = replace(self._options, seed=None if seed is None else seed + attempt)
        model = self.tuned.model
        is_off = self.is_base and isinstance(model, PeftModel)
        with model.disable_adapter() if is_off else nullcontext():
            return generate_answer(self.tuned, self._renderer, messages, options, on_text)


def chat(session: Conversation, inputs: Iterable[Said], on_text: OnText, on_reasoning: OnText = console.aside) -> None:
    """Answer each message until they end or one says /exit.

    Args:
        session: the conversation.
        inputs: what the user says, commands among it.
        on_text: called with each piece of the answers.
        on_reasoning: called with each piece of the reasoning before an answer.
    """
    screen = _Screen(session, on_text, on_reasoning)
    for said in inputs:
        command, _, argument = said.text.partition(" ")
        if said.is_command and command in ("/exit", "/quit"):
            return
        if said.is_command and command == "/retry":
            screen.show(session.retry)
        elif said.is_command and command in CHAT_COMMANDS:
            _obey(session, CHAT_COMMANDS[command], argument.strip())
        elif said.is_command:
            console.note(f"there is no command {command}; /help lists those there are")
        elif said.text:
            screen.show(partial(session.ask, said.text))


def _obey(session: Conversation, command: Callable[[Conversation, str], str], argument: str) -> None:
    try:
        console.note(command(session, argument))
    except QloraError as error:
        console.show_error(error)
    except OSError as fault:
        console.show_error(disk_error(fault) or ArgumentError(f"cannot be written: {fault}"))


class _Screen:
    """Shows answers as they are made, reasoning apart from them."""

    def __init__(self, session: Conversation, on_text: OnText, on_reasoning: OnText) -> None:
        self._session = session
        self._on_text = on_text
        self._on_reasoning = on_reasoning

    def show(self, ask: Callable[[OnText], Answer]) -> None:
        splitter = ReasoningSplitter(self._session.frame)
        has_reasoned = False

        def take(parts: list[Part]) -> None:
            nonlocal has_reasoned
            for part in parts:
                if has_reasoned and not part.is_reasoning:
                    self._on_reasoning("\n\n")
                has_reasoned = part.is_reasoning
                (self._on_reasoning if part.is_reasoning else self._on_text)(part.text)

        try:
            answer = ask(lambda text: take(splitter.push(text)))
        except QloraError as error:
            console.show_error(error)
            return
        take(splitter.finish())
        if has_reasoned:
            self._on_reasoning("\n")
        self._on_text("\n")
        if splitter.is_reasoning:
            console.note("it ended inside its reasoning, before an answer")
        if answer.stopped_by == "length":
            console.note(self._session.why_cut(answer))
