import io
import os
import pty
import readline
import select
import signal
import subprocess
import sys
import time

import pytest

from qlora_cli.serve.chat_input import LONGEST_HISTORY, Said, kept_history, read_inputs


def said(text):
    return list(read_inputs(io.StringIO(text)))


def test_each_line_is_a_message_and_a_slash_begins_a_command():
    assert said("hello \n\n/help me\n") == [Said("hello", False), Said("", False), Said("/help me", True)]


def test_lines_between_marks_are_one_message():
    assert said('"""\n a\n\n/b\n"""\nc\n') == [Said(" a\n\n/b", False), Said("c", False)]


def test_a_mark_inside_a_line_is_text():
    assert said('say """ now\n') == [Said('say """ now', False)]


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_message_whose_end_is_missing_ends_with_the_input(end):
    assert said(f'"""\r\na\r\nb{end}') == [Said("a\nb", False)]


@pytest.fixture
def lines():
    readline.clear_history()
    yield readline
    readline.clear_history()


def typed_in_a_session(path, *texts):
    with kept_history(path):
        there = [readline.get_history_item(at) for at in range(1, readline.get_current_history_length() + 1)]
        for text in texts:
            readline.add_history(text)
    return there


def test_typed_lines_come_back_in_the_next_session_for_the_user_alone(tmp_path, lines):
    path = tmp_path / "chat" / "history"
    typed_in_a_session(path, "first", "second é")
    assert typed_in_a_session(path, "third") == ["first", "second é"]
    assert typed_in_a_session(path) == ["first", "second é", "third"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_session_that_ended_meanwhile_loses_nothing(tmp_path, lines):
    path = tmp_path / "history"
    with kept_history(path):
        readline.add_history("mine")
        program = f"import readline; readline.add_history('theirs'); readline.write_history_file({str(path)!r})"
        subprocess.run([sys.executable, "-c", program], check=True)
    assert typed_in_a_session(path) == ["theirs", "mine"]


def test_history_is_bounded(tmp_path, lines):
    path = tmp_path / "history"
    typed_in_a_session(path, *(f"line {n}" for n in range(LONGEST_HISTORY + 50)))
    there = typed_in_a_session(path)
    assert (len(there), there[-1]) == (LONGEST_HISTORY, f"line {LONGEST_HISTORY + 49}")


def test_a_place_that_cannot_be_written_costs_a_line_and_not_the_chat(tmp_path, lines, capsys):
    (tmp_path / "file").touch()
    typed_in_a_session(tmp_path / "file" / "history", "hello")
    assert "typed lines are not kept" in capsys.readouterr().err


def test_a_terminal_prompts_clears_on_ctrl_c_and_shows_that_a_block_is_open():
    program = (
        "import sys; from qlora_cli.interruption import keyboard_interrupts; "
        "from qlora_cli.serve.chat_input import read_inputs\n"
        "with keyboard_interrupts():\n  print([one.text for one in read_inputs(sys.stdin)], flush=True)"
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=False
    )
    os.close(theirs)
    seen = ""

    def read_until(text):
        nonlocal seen
        while text not in seen:
            assert select.select([ours], [], [], 30)[0], f"{text!r} does not come; there is {seen!r}"
            seen += os.read(ours, 4096).decode()
        seen = seen.partition(text)[2]

    read_until("> ")
    os.write(ours, b'"""\n')
    read_until("... ")
    os.write(ours, b"gone\n")
    read_until("... ")
    time.sleep(0.3)  # between its prompt and its wait, `input` does not notice a signal until the next key
    process.send_signal(signal.SIGINT)
    read_until("/exit leaves")
    read_until("> ")
    os.write(ours, b'"""\n')
    read_until("... ")
    os.write(ours, b'kept\n"""\n')
    read_until("> ")
    os.write(ours, b"\x04")
    read_until("['kept']")
    assert process.wait(20) == 0
    os.close(ours)
