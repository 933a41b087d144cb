import io

import pytest

from qlora_cli.serve.chat import CHAT_COMMANDS, ChatSession, chat, read_lines
from qlora_cli.serve.generation import SamplingOptions

SHORT = SamplingOptions(max_new_tokens=8)


@pytest.fixture
def session(tuned):
    return ChatSession(tuned, SHORT)


def run_chat(session, text):
    pieces = []
    chat(session, read_lines(io.StringIO(text)), pieces.append)
    return "".join(pieces)


def contents(session):
    return [turn["content"] for turn in session.turns]


def test_each_line_of_a_pipe_gets_its_answer(session):
    out = run_chat(session, "hello\n\nwho are you?\n")
    assert [turn["role"] for turn in session.turns] == ["user", "assistant"] * 2
    assert out == f"{contents(session)[1]}\n{contents(session)[3]}\n"


def test_the_second_answer_stands_on_the_first_turn(session, tuned):
    run_chat(session, "hello\nagain\n")
    alone = ChatSession(tuned, SHORT)
    run_chat(alone, "again\n")
    assert contents(alone)[1] != contents(session)[3]


def test_reset_forgets_the_conversation(session, tuned):
    run_chat(session, "hello\n/reset\nagain\n")
    alone = ChatSession(tuned, SHORT)
    run_chat(alone, "again\n")
    assert session.turns == alone.turns


def test_system_prompt_changes_the_answer_and_starts_over(session, tuned):
    run_chat(session, "hello\n/system Speak like a pirate.\nagain\n")
    alone = ChatSession(tuned, SHORT)
    run_chat(alone, "again\n")
    assert session.system == "Speak like a pirate."
    assert contents(session)[0] == "again"
    assert contents(session)[1] != contents(alone)[1]


def test_exit_ends_the_chat(session):
    assert run_chat(session, "/exit\nhello\n") == ""
    assert session.turns == []


def test_an_unknown_command_is_not_sent_to_the_model(session, capsys):
    assert run_chat(session, "/rest\n") == ""
    assert capsys.readouterr().err == "there is no command /rest; /help lists those there are\n"


def test_help_names_every_command_and_is_not_sent_to_the_model(session, capsys):
    assert run_chat(session, "/help\n") == ""
    assert session.turns == []
    told = capsys.readouterr().err
    for command in (*CHAT_COMMANDS, "/exit"):
        assert f"\n{command} " in f"\n{told}"


def test_an_answer_that_was_cut_says_how_it_goes_on(tuned, capsys):
    session = ChatSession(tuned, SamplingOptions(max_new_tokens=1))
    run_chat(session, "hello\n")
    assert capsys.readouterr().err == "cut after 1 tokens; `--max-new-tokens 2` lets it continue\n"


def test_a_turn_that_is_refused_leaves_the_chat_going(session, capsys):
    run_chat(session, "x" * 300 + "\nhello\n")
    assert contents(session)[0] == "hello"
    assert "the model's context is 256" in capsys.readouterr().err
