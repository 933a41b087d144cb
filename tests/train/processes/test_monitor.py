"""Three processes that monitor each other: how one ends is how all end, and one of them says why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import os, signal, sys, time
from qlora_cli import console
from qlora_cli.errors import DataError, QloraError
from qlora_cli.train.processes import rendezvous
from qlora_cli.train.processes import monitor as watching
from qlora_cli.train.processes.launch import take_launch

rank, what = int(os.environ["RANK"]), sys.argv[1]
watching.GRACE_SECONDS, rendezvous.TIMEOUT_SECONDS = 0.5, 2.0
launch = take_launch()
try:
    with watching.monitored(launch) as monitor:
        exec(what)
except QloraError as error:
    console.show_error(error)
    sys.exit(error.exit_code)
"""

DIE = "os.kill(os.getpid(), signal.SIGKILL)"


def start(what: str, *, ranks=range(3), name: str) -> dict[int, subprocess.Popen]:
    """Processes of a launch of three, each doing `what` once they have met."""
    variables = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TORCHELASTIC_RESTART_COUNT": name}
    processes = {}
    for rank in ranks:
        environment = os.environ | variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-c", PROGRAM, what]
        processes[rank] = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    return processes


def together(what: str, *, ranks=range(3), name: str) -> tuple[list[int], list[str]]:
    """Exit codes and output of processes that ended within ten seconds."""
    processes = start(what, ranks=ranks, name=name)
    end = time.monotonic() + 10
    outputs = [process.communicate(timeout=max(end - time.monotonic(), 0.1))[0] for process in processes.values()]
    return [process.returncode for process in processes.values()], outputs


def test_what_the_first_makes_the_others_get_in_order(tmp_path):
    what = "a, b = (monitor.broadcast_object(lambda: [rank, n]) for n in (1, 2)); print('!', a, b); sys.stdout.flush()"
    assert together(what, name=str(tmp_path)) == ([0, 0, 0], ["! [0, 1] [0, 2]\n"] * 3)


def test_the_others_come_after_the_first(tmp_path):
    what = f"""
with monitor.main_process_first():
    if rank == 0: time.sleep(0.3)
    open({str(tmp_path / "order")!r}, "a").write(str(rank))
"""
    assert together(what, name=str(tmp_path))[0] == [0, 0, 0]
    assert (tmp_path / "order").read_text()[0] == "0"


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_an_error_in_one_is_said_once_and_ends_all_with_its_code(tmp_path, rank):
    what = f"if rank == {rank}: raise DataError('bad row')\nmonitor.broadcast_object(lambda: time.sleep(60))"
    exit_codes, outputs = together(what, name=str(tmp_path))
    assert exit_codes == [2, 2, 2]
    assert outputs == ["error: bad row\n" if one == rank else "" for one in range(3)]


def test_the_same_error_in_all_is_said_once(tmp_path):
    exit_codes, outputs = together("raise DataError('bad row')", name=str(tmp_path))
    assert exit_codes == [2, 2, 2]
    assert sorted(outputs) == ["", "", "error: bad row\n"]


def test_a_crash_in_all_shows_one_traceback(tmp_path):
    exit_codes, outputs = together("1 / 0", name=str(tmp_path))
    assert exit_codes == [1, 1, 1]
    assert [output.count("Traceback") for output in sorted(outputs)] == [0, 0, 1]


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize(
    "busy", ["monitor.broadcast_object(lambda: time.sleep(60))", "time.sleep(60)"], ids=["waiting", "stuck"]
)
def test_a_killed_process_ends_all_wherever_they_are_and_one_of_them_says_it(tmp_path, rank, busy):
    what = f"if rank == {rank}: time.sleep(0.2); {DIE}\n{busy}"
    exit_codes, outputs = together(what, name=str(tmp_path))
    assert exit_codes == [-9 if one == rank else 5 for one in range(3)]
    said = [output for output in outputs if output]
    assert len(said) == 1
    assert f"process {rank} of 3 (pid " in said[0]
    assert "--resume" in said[0]


def test_a_process_that_is_through_may_end_before_the_first(tmp_path):
    what = "if rank == 0: time.sleep(0.5); print('written')"
    assert together(what, name=str(tmp_path)) == ([0, 0, 0], ["written\n", "", ""])


def test_the_others_are_not_through_before_the_first(tmp_path):
    exit_codes, outputs = together("if rank == 0: time.sleep(0.3); raise DataError('full')", name=str(tmp_path))
    assert (exit_codes, outputs) == ([2, 2, 2], ["error: full\n", "", ""])


@pytest.mark.parametrize(
    ("ranks", "missing"),
    [([0, 1], "rank 2 of 3"), ([0], "ranks 1, 2 of 3"), ([1, 2], "rank 0 of 3")],
    ids=str,
)
def test_processes_that_do_not_come_are_named_by_one_of_those_that_wait(tmp_path, ranks, missing):
    exit_codes, outputs = together("pass", ranks=ranks, name=str(tmp_path))
    assert set(exit_codes) == {2}
    [said] = [output for output in outputs if output]
    assert f"{missing} did not connect within" in said


def test_time_in_which_no_process_may_run_does_not_count(tmp_path):
    first = start("pass", ranks=[0], name=str(tmp_path))
    time.sleep(0.7)
    first[0].send_signal(signal.SIGSTOP)
    time.sleep(2.5)
    first[0].send_signal(signal.SIGCONT)
    assert together("pass", ranks=[1, 2], name=str(tmp_path)) == ([0, 0], ["", ""])
    assert first[0].communicate(timeout=10) == ("", None)


def test_a_second_launch_of_the_same_name_is_refused(tmp_path):
    first = start("time.sleep(3)", ranks=[0], name=str(tmp_path))
    time.sleep(1)
    exit_codes, [said] = together("pass", ranks=[0], name=str(tmp_path))
    first[0].communicate()
    assert exit_codes == [2]
    assert "--master-port" in said
