"""What a line that begins with a slash does in a chat."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qlora_cli.errors import ArgumentError
from qlora_cli.serve.conversation import Conversation
from qlora_cli.serve.saved_chat import save_conversation

HELP = '''\
/help          lists the commands
/reset         forgets the conversation
/system TEXT   sets the system prompt and starts over; without TEXT there is none
/retry         makes another answer in place of the last one
/base          answers without the adapter from here on, or with it again
/save FILE     adds the conversation to a JSON Lines file that `qlora train` reads
/exit          leaves, as Ctrl-D does
"""            alone on a line begins a message of several lines, and ends it
Ctrl-C         ends an answer'''


def _show_help(_session: Conversation, _argument: str) -> str:
    return HELP


def _reset(session: Conversation, _argument: str) -> str:
    session.reset()
    return "the conversation starts over"


def _set_system(session: Conversation, argument: str) -> str:
    session.reset()
    session.system = argument
    return "the conversation starts over with that system prompt" if argument else "no system prompt from here on"


def _switch_base(session: Conversation, _argument: str) -> str:
    return session.switch_base()


def _save(session: Conversation, argument: str) -> str:
    if not argument:
        raise ArgumentError("/save needs a file", hint="/save rows.jsonl")
    if not session.turns:
        raise ArgumentError("there is nothing to save yet", hint="ask something first")
    path = Path(argument).expanduser()
    number = save_conversation(path, session.messages)
    return f"the conversation is row {number:,} of {path}"


CHAT_COMMANDS: dict[str, Callable[[Conversation, str], str]] = {
    "/help": _show_help,
    "/reset": _reset,
    "/system": _set_system,
    "/base": _switch_base,
    "/save": _save,
}
"""Command -> what it does and says; /retry and /exit are the chat's own."""
