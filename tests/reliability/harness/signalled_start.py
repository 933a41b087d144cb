"""A command that gets a signal at a chosen moment of its start, imports included; run as a program.

It reads JSON, `[{"arguments": [...], "signal": 2, "at": 5, "name": null, "after": null}, ...]`, and answers with a list
of `{"exit_code", "calls", "seconds", "text"}`. This file imports nothing that the command imports, so that each child
begins again.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time


def run_case(case: dict) -> dict:
    """How a child ends that gets `signal` at the `at`-th call of a function of that `name` (null: of any).

    Or `after` this many seconds, from outside; calls are not counted then.
    """
    with tempfile.TemporaryFile("w+") as log:
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)
            sys.argv = ["qlora", *case["arguments"]]
            _begin(case, write_end)
        os.close(write_end)
        started = time.monotonic()
        if case["after"] is not None:
            time.sleep(case["after"])
            os.kill(child, case["signal"])
        exit_code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        seconds = time.monotonic() - started
        with os.fdopen(read_end) as pipe:
            calls = int(pipe.read() or -1)
        log.seek(0)
        return {"exit_code": exit_code, "calls": calls, "seconds": seconds, "text": log.read()}


def _begin(case: dict, write_end: int) -> None:
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        if event == "call" and case["name"] in (None, frame.f_code.co_name):
            calls += 1
            if calls == case["at"]:
                sys.setprofile(None)
                os.kill(os.getpid(), case["signal"])

    from qlora_cli.__main__ import main

    if case["at"] is not None:
        sys.setprofile(count)
    try:
        main()
    finally:  # what is raised here is printed and becomes the exit code as in any program
        sys.setprofile(None)
        os.write(write_end, str(calls).encode())


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    results = []
    for case in json.load(sys.stdin):
        results.append(run_case(case))
    json.dump(results, sys.stdout)
