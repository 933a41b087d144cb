"""Results go to stdout, notes to stderr; what the libraries say goes to the log."""

from __future__ import annotations

import json
import logging
import sys
import warnings

import pytest
from rich.text import Text

from qlora_cli import console
from qlora_cli.errors import Problem, RecipeError


def test_notes_and_warnings_go_to_stderr(capsys):
    console.note("calm")
    console.warn("read this")
    assert capsys.readouterr() == ("", "calm\nwarning: read this\n")


def test_results_go_to_stdout(capsys):
    console.result("made")
    console.result(Text("coloured"))
    assert capsys.readouterr() == ("made\ncoloured\n", "")


def test_square_brackets_are_text_and_not_markup(capsys):
    console.result("[bold]data[/bold][0]")
    console.note("[red]runs[/red][1]")
    assert capsys.readouterr() == ("[bold]data[/bold][0]\n", "[red]runs[/red][1]\n")


def test_a_long_line_is_not_broken(capsys):
    console.note("word " * 100)
    assert capsys.readouterr().err.count("\n") == 1


def test_each_problem_of_an_error_is_a_line_with_its_hint_below(capsys):
    console.show_error(RecipeError([Problem("one", "a.yaml:1", "type x"), Problem("two")]))
    assert capsys.readouterr() == ("", "error: a.yaml:1: one\nhint: type x\nerror: two\n")


def test_a_piece_of_an_answer_is_printed_as_it_is(capsys):
    console.piece("a\tb")
    console.piece("[i]c")
    assert capsys.readouterr().out == "a\tb[i]c"


def test_json_keeps_letters_and_refuses_what_json_cannot_hold(capsys):
    console.data({"word": "Größe", "n": 1})
    out = capsys.readouterr().out
    assert json.loads(out) == {"word": "Größe", "n": 1}
    assert "Größe" in out
    with pytest.raises(ValueError, match="JSON compliant"):
        console.data(float("nan"))


def test_numbers_in_a_table_stand_to_the_right_and_words_to_the_left(capsys):
    console.table(("name", "count", "note"), [("a", "5", "x"), ("bb", "1,000", "yy")])
    header, first, second = (line.rstrip() for line in capsys.readouterr().out.splitlines())
    assert header == "name   count   note"
    assert first == "a          5   x"
    assert second == "bb     1,000   yy"


def test_an_empty_table_still_has_its_header(capsys):
    console.table(("name", "count"), [])
    assert capsys.readouterr().out.split() == ["name", "count"]


def test_facts_are_aligned(capsys):
    console.facts({"a": "1", "long": "2"}, title="Title")
    assert capsys.readouterr().out == "Title\n  a     1\n  long  2\n"


@pytest.mark.filterwarnings("always")
def test_what_libraries_log_and_warn_goes_into_the_log_and_not_onto_the_screen(tmp_path, capfd):
    log = tmp_path / "log.txt"
    with console.library_noise_to(log):
        logging.getLogger("transformers.trainer").warning("tokens aligned")
        warnings.warn("soon gone", FutureWarning, stacklevel=1)
    assert capfd.readouterr() == ("", "")
    text = log.read_text()
    assert "WARNING transformers.trainer: tokens aligned" in text
    assert "FutureWarning: soon gone" in text


def test_a_second_session_adds_to_the_log(tmp_path):
    log = tmp_path / "log.txt"
    for word in ("first", "second"):
        with console.library_noise_to(log):
            logging.getLogger("peft").warning(word)
    assert [line.rsplit(" ", 1)[-1] for line in log.read_text().splitlines()] == ["first", "second"]


def test_afterwards_the_libraries_speak_as_before_even_after_an_error(tmp_path):
    logger = logging.getLogger("transformers")
    before = (list(logger.handlers), logger.propagate)
    with pytest.raises(KeyError), console.library_noise_to(tmp_path / "log.txt"):
        assert logger.handlers != before[0]
        raise KeyError
    assert (logger.handlers, logger.propagate) == before
    logger.error("not for the log")
    assert "not for the log" not in (tmp_path / "log.txt").read_text()


def test_with_no_log_the_noise_is_dropped(capfd):
    with console.library_noise_to(None):
        logging.getLogger("datasets").warning("progress")
    assert capfd.readouterr() == ("", "")


TOKEN = "hf_" + "a1" * 17


def test_nothing_that_is_said_holds_a_secret(capsys):
    console.note(TOKEN)
    console.warn(TOKEN)
    console.show_error(RecipeError([Problem(TOKEN, TOKEN, TOKEN)]))
    console.result(f"wrote {TOKEN}")
    console.data({TOKEN: TOKEN})
    console.table(("base", "path"), [(TOKEN, TOKEN)])
    console.facts({"base": TOKEN})
    printed = capsys.readouterr()
    assert TOKEN not in printed.out + printed.err
    assert (printed.out.count("(secret "), printed.err.count("(secret ")) == (6, 5)


def test_rows_and_answers_are_printed_as_they_are(capsys):
    console.result(Text(TOKEN))
    console.piece(TOKEN)
    console.data(TOKEN, is_answer=True)
    assert capsys.readouterr().out.count(TOKEN) == 3


def clean_streams(monkeypatch):
    """As a command has them; pytest gives each phase of a test other streams, so that this is no fixture."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    console.keep_streams_clean()
    console.keep_streams_clean()


def test_rows_and_answers_go_past_the_clean_streams_and_nothing_else_does(capsys, monkeypatch):
    clean_streams(monkeypatch)
    test_rows_and_answers_are_printed_as_they_are(capsys)
    print(TOKEN)
    console.out.print(TOKEN)
    assert capsys.readouterr().out == "(secret Hugging Face token)\n" * 2


def test_a_tracker_that_listens_to_the_screen_hears_what_the_screen_shows(capsys, monkeypatch):
    clean_streams(monkeypatch)
    heard, write = [], sys.stderr.write
    sys.stderr.write = lambda text: (heard.append(text), write(text))
    print(TOKEN, file=sys.stderr)
    sys.stderr.write = write
    print("later", file=sys.stderr)
    assert "".join(heard) == "(secret Hugging Face token)\n"
    assert capsys.readouterr().err == "(secret Hugging Face token)\nlater\n"


def test_stderr_is_clean_whoever_writes_to_it(capsys, monkeypatch):
    clean_streams(monkeypatch)
    print("a", TOKEN, file=sys.stderr)
    sys.stderr.writelines([f"b {TOKEN}\n"])
    console.err.print("c", TOKEN)
    assert capsys.readouterr().err == "".join(f"{word} (secret Hugging Face token)\n" for word in "abc")
    assert not sys.stderr.isatty()
