"""Errors say what is wrong, where, and what to type; each kind has its exit code."""

from __future__ import annotations

import pytest

from qlora_cli import errors
from qlora_cli.errors import Problem, QloraError, StoppedBySignal

EXIT_CODES = {  # docs/design.md
    "RecipeError": 2,
    "DataError": 2,
    "ArgumentError": 2,
    "IdentityError": 3,
    "NumericError": 4,
    "ResourceError": 5,
    "RunInUseError": 6,
}


@pytest.mark.parametrize(("name", "code"), EXIT_CODES.items())
def test_each_kind_of_error_has_its_exit_code(name, code):
    assert getattr(errors, name)("x").exit_code == code


def test_no_kind_of_error_is_without_an_exit_code_here():
    assert {kind.__name__ for kind in QloraError.__subclasses__()} == {*EXIT_CODES, "StoppedBySignal"}


@pytest.mark.parametrize(("signal_number", "code"), [(2, 130), (15, 143)])
def test_a_run_stopped_by_a_signal_ends_as_a_shell_expects(signal_number, code):
    assert StoppedBySignal("x", signal_number=signal_number).exit_code == code


def test_place_and_hint_stand_around_the_text():
    problem = Problem("unknown key 'r2'", "a.yaml:3", "did you mean 'r'?")
    assert str(problem) == "error: a.yaml:3: unknown key 'r2'\nhint: did you mean 'r'?"
    assert str(Problem("no place")) == "error: no place"


def test_a_single_text_becomes_one_problem():
    error = QloraError("wrong", hint="type this", place="a.yaml:1")
    assert error.problems == [Problem("wrong", "a.yaml:1", "type this")]


def test_several_problems_are_all_told():
    error = QloraError([Problem("first"), Problem("second")])
    assert str(error) == "error: first\nerror: second"


def test_an_error_without_a_problem_is_our_own_mistake():
    with pytest.raises(ValueError, match="at least one problem"):
        QloraError([])
