"""Whatever library reports that the disk refuses, the user reads one line with the path and what to do."""

from __future__ import annotations

import errno
import os
import shutil

import pytest
from safetensors import SafetensorError

from qlora_cli.errors import ArgumentError, RecipeError, ResourceError
from qlora_cli.run.disk_errors import REASONS, disk_error, naming


def raised(fault: Exception, cause: Exception) -> Exception:
    """The fault as `raise fault from cause` has it."""
    fault.__cause__ = cause
    return fault


FULL = "Error while serializing: I/O error: No space left on device (os error 28)"
AS_REPORTED = {
    "Python": OSError(28, "No space left on device"),
    "safetensors": SafetensorError(FULL),
    "older safetensors": SafetensorError(
        'Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })'
    ),
    "tokenizers": Exception("No space left on device (os error 28)"),
    "shutil": shutil.Error([("/from/a", "/to/a", "[Errno 28] No space left on device: '/from/a' -> '/to/a'")]),
    "pyarrow": OSError(28, "Error writing bytes to file. Detail: [errno 28] No space left on device"),
    "a library around it": raised(RuntimeError("dataset generation failed"), OSError(28, "No space left on device")),
    "our own error around it": raised(RecipeError("the base cannot be read"), OSError(28, "No space left on device")),
}


@pytest.mark.parametrize("library", AS_REPORTED)
def test_a_full_disk_is_the_same_line_whoever_reports_it(library):
    error = disk_error(AS_REPORTED[library])
    assert isinstance(error, ResourceError)
    assert error.problems[0].text == "the disk is full"
    assert error.problems[0].hint.startswith("make room")


@pytest.mark.parametrize("number", REASONS)
def test_every_refusal_of_the_system_is_exit_code_5_with_path_and_hint(number):
    fault = OSError(number, os.strerror(number), "/some/file")
    error = disk_error(fault)
    assert (error.exit_code, error.problems[0].place) == (5, "/some/file")
    assert error.problems[0].hint


def test_a_path_is_given_to_a_fault_that_has_none_and_the_innermost_counts(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught, naming(tmp_path), naming(tmp_path / "inner"):
        raise SafetensorError(FULL)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "inner"))
    assert disk_error(caught.value).problems[0].place == str(tmp_path / "inner")


def test_the_path_is_the_one_that_the_user_named_and_not_the_name_while_it_is_written():
    fault = OSError(28, "full", "/out/.model.staging-77/model.safetensors")
    assert disk_error(fault).problems[0].place == "/out/model/model.safetensors"
    moved = OSError(28, "full", "/out/.a.json.staged-7", None, "/out/a.json")
    assert disk_error(moved).problems[0].place == "/out/a.json"


def test_what_else_can_be_done_is_said_of_files_below_the_path_only(tmp_path):
    for name, is_said in ((tmp_path / "cache" / "rows", True), (tmp_path / "elsewhere", False)):
        with pytest.raises(OSError, match="Permission") as caught, naming(tmp_path / "cache", "or QLORA_CACHE=FOLDER"):
            raise PermissionError(errno.EACCES, "Permission denied", str(name))
        assert ("QLORA_CACHE=FOLDER" in disk_error(caught.value).problems[0].hint) is is_said


def test_a_cache_of_the_hub_that_cannot_be_written_leads_to_another():
    name = "/home/me/.cache/huggingface/hub/.locks/models--a--b"
    error = disk_error(raised(ValueError("we couldn't connect"), OSError(errno.EROFS, "Read-only file system", name)))
    assert error.problems[0].place == name
    assert "HF_HOME=FOLDER" in error.problems[0].hint


def test_a_path_that_cannot_be_is_a_bad_argument():
    error = disk_error(NotADirectoryError(errno.ENOTDIR, "Not a directory", "/etc/passwd/run"))
    assert isinstance(error, ArgumentError)
    assert (error.problems[0].place, error.problems[0].text) == ("/etc/passwd/run", "not a directory")


@pytest.mark.parametrize(
    "fault",
    [
        ValueError("28"),
        KeyError("os error"),
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        RecipeError("a line of the recipe"),
        raised(RecipeError("the base cannot be read"), PermissionError(errno.EACCES, "denied", "/base/config.json")),
    ],
)
def test_what_has_nothing_to_do_with_it_stays_what_it_is(fault):
    assert disk_error(fault) is None


@pytest.mark.parametrize("number", [errno.EINTR, errno.EINVAL])
def test_what_safetensors_says_of_a_write_is_a_fault_of_the_disk_whatever_its_number(number):
    fault = SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")
    error = disk_error(fault)
    assert (error.exit_code, error.problems[0].text) == (5, os.strerror(number).lower())
