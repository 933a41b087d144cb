import dataclasses
import io
import json

import pytest

from qlora_cli.data.render.answer_frame import AnswerFrame
from qlora_cli.serve.chat import ChatSession, chat
from qlora_cli.serve.chat_commands import CHAT_COMMANDS
from qlora_cli.serve.chat_input import read_inputs
from qlora_cli.serve.conversation import Conversation
from qlora_cli.serve.generation import Answer, SamplingOptions
from qlora_cli.serve.speaker import load_speaker

SHORT = SamplingOptions(max_new_tokens=8)


@pytest.fixture
def session(tuned):
    return ChatSession(tuned, SHORT)


def run_chat(session, text):
    pieces = []
    chat(session, read_inputs(io.StringIO(text)), pieces.append)
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
    for command in (*CHAT_COMMANDS, "/retry", "/exit"):
        assert f"\n{command} " in f"\n{told}"


def test_an_answer_that_was_cut_says_how_it_goes_on(tuned, capsys):
    session = ChatSession(tuned, SamplingOptions(max_new_tokens=1))
    run_chat(session, "hello\n")
    assert capsys.readouterr().err == "cut after 1 tokens; `--max-new-tokens 2` lets it continue\n"


def test_a_turn_that_is_refused_leaves_the_chat_going(session, capsys):
    run_chat(session, "x" * 300 + "\nhello\n")
    assert contents(session)[0] == "hello"
    assert "the model's context is 256" in capsys.readouterr().err


def test_a_message_of_several_lines_is_one_turn_and_its_slashes_are_no_commands(session):
    run_chat(session, 'before\n"""\n/exit\n\n  two\n"""\nafter\n')
    assert contents(session)[::2] == ["before", "/exit\n\n  two", "after"]


def test_retry_makes_the_seeds_next_answer_in_place_of_the_last_one(tuned):
    options = SamplingOptions(temperature=1.5, max_new_tokens=8, seed=1)
    session = ChatSession(tuned, options)
    run_chat(session, "hello\nagain\n/retry\n")
    assert [turn["role"] for turn in session.turns] == ["user", "assistant"] * 2
    alone = ChatSession(tuned, options)
    run_chat(alone, "hello\n")
    assert contents(session)[1] == contents(alone)[1]
    alone._options = dataclasses.replace(options, seed=2)
    run_chat(alone, "again\n")
    assert contents(session)[3] == contents(alone)[3]


def test_retry_before_any_answer_is_refused_and_the_chat_goes_on(session, capsys):
    run_chat(session, "/retry\nhello\n")
    assert contents(session)[0] == "hello"
    assert capsys.readouterr().err.startswith("error: there is no answer yet to try again\nhint: ask something")


def test_base_answers_in_the_same_conversation_and_the_adapter_comes_back(tuned, run):
    greedy = ChatSession(tuned, SHORT)
    run_chat(greedy, "hello\n/base\nagain\n/base\nagain\n")
    base, adapter = ChatSession(load_speaker(run.path, is_base_wanted=True), SHORT), ChatSession(tuned, SHORT)
    base.turns = [dict(turn) for turn in greedy.turns[:2]]
    adapter.turns = [dict(turn) for turn in greedy.turns[:4]]
    run_chat(base, "again\n")
    run_chat(adapter, "again\n")
    assert contents(greedy)[3] == contents(base)[3]
    assert contents(greedy)[5] == contents(adapter)[5]
    assert contents(base)[3] != contents(adapter)[1]


def test_base_is_refused_where_the_weights_in_memory_are_no_base(tuned, run, capsys):
    apart = dataclasses.replace(tuned, source=dataclasses.replace(tuned.source, base_source="residual"))
    session = ChatSession(apart, SHORT)
    run_chat(session, "/base\n")
    assert not session.is_base
    assert f"`qlora chat {run.path} --base`" in capsys.readouterr().err


def test_base_says_that_there_is_no_adapter_where_the_base_speaks_already(run, capsys):
    session = ChatSession(load_speaker(run.path, is_base_wanted=True), SHORT)
    run_chat(session, "/base\n")
    assert "start again without --base" in capsys.readouterr().err


def test_save_writes_a_row_and_a_fault_leaves_the_chat_going(session, tmp_path, capsys):
    run_chat(session, f"/system Be kind.\nhello\n/save {tmp_path}/a.jsonl\n/save {tmp_path}/none/a.jsonl\nmore\n")
    row = json.loads((tmp_path / "a.jsonl").read_text())
    assert row == {"messages": [{"role": "system", "content": "Be kind."}, *session.turns[:2]]}
    assert contents(session)[2] == "more"
    assert "none" in capsys.readouterr().err


class Thinker(Conversation):
    """Says what it is told to, a few characters at a time."""

    def __init__(self, text, frame, stopped_by="end_of_turn"):
        super().__init__()
        self.frame, self._text, self._stopped_by = frame, text, stopped_by

    def why_cut(self, answer):
        return "cut"

    def _answer(self, messages, on_text, attempt):
        for start in range(0, len(self._text), 3):
            on_text(self._text[start : start + 3])
        return Answer(self._text, 1, 1, 0.0, self._stopped_by, "float32 on cpu")


THINK = AnswerFrame(opening="<think>", closing="</think>")


def test_reasoning_is_shown_apart_and_stays_out_of_stdout(capsys):
    out = run_chat(Thinker("<think>\n2 + 2\n</think>\n\n4", THINK), "What?\n")
    assert out == "4\n"
    assert capsys.readouterr().err == "2 + 2\n\n"


def test_an_answer_that_never_came_is_said_to_be_missing(capsys):
    assert run_chat(Thinker("<think>well", THINK, "length"), "What?\n") == "\n"
    assert capsys.readouterr().err == "well\nit ended inside its reasoning, before an answer\ncut\n"
