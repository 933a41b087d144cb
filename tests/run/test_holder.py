"""Whether somebody writes to a run is seen without disturbing whoever is about to."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.holder import holder_of


def test_nobody_holds_a_run_that_was_never_claimed_or_was_let_go(tmp_path):
    run = RunDirectory(tmp_path / "run")
    assert holder_of(run) is None
    with run.claimed():
        assert holder_of(run) == str(os.getpid())
    assert holder_of(run) is None


@pytest.mark.slow
def test_a_killed_process_holds_nothing_although_its_id_is_still_there(tmp_path):
    run = RunDirectory(tmp_path / "run")
    code = (
        "import sys, time; from pathlib import Path; from qlora_cli.run.directory import RunDirectory\n"
        "with RunDirectory(Path(sys.argv[1])).claimed(): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    assert holder_of(run) == str(process.pid)
    process.kill()
    process.communicate()
    assert run.lock_path.read_text() == f"{process.pid}\n"
    assert holder_of(run) is None


@pytest.mark.slow
def test_looking_never_keeps_another_process_from_claiming(tmp_path):
    run = RunDirectory(tmp_path / "run")
    code = (
        "import sys; from pathlib import Path; from qlora_cli.run.directory import RunDirectory\n"
        "from qlora_cli.run.holder import holder_of\n"
        "print('looks', flush=True)\n"
        "while True: holder_of(RunDirectory(Path(sys.argv[1])))"
    )
    with run.claimed():
        pass
    process = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"looks\n"
        for _ in range(100):
            with run.claimed():  # raises where it is not to be had
                pass
    finally:
        process.kill()
        process.communicate()


def test_a_lock_that_is_no_file_of_ours_is_not_read(tmp_path):
    run = RunDirectory(tmp_path)
    os.mkfifo(run.lock_path)  # opening it for reading would wait for a writer
    assert holder_of(run) is None
    run.lock_path.unlink()
    (tmp_path / "elsewhere").write_text("17\n")
    run.lock_path.symlink_to(tmp_path / "elsewhere")
    assert holder_of(run) is None
