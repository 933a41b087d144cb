"""A push that is killed while it sends leaves the repository as it was; the next one ends what it began."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading

import pytest

from tests.hub_server import OWNER, TOKEN

pytestmark = pytest.mark.slow

REPO = f"{OWNER}/sums"


def start(run, *options):
    environment = {**os.environ, "HF_HUB_OFFLINE": "", "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "qlora_cli", "push", str(run), REPO, *options],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_push_that_is_killed_in_the_middle_leaves_the_repository_whole(hub, made, tmp_path):
    shutil.copytree(made.path, tmp_path / "run")
    repo = hub.add(REPO, {"a": b"1"})
    is_sending, may_go_on = threading.Event(), threading.Event()

    def before(method, path):
        if method == "PUT":
            is_sending.set()
            may_go_on.wait(60)

    hub.before = before
    process = start(tmp_path / "run")
    assert is_sending.wait(120)
    process.kill()
    process.communicate()
    may_go_on.set()
    assert repo.files() == {"a": b"1"}
    process = start(tmp_path / "run")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "\npushed " in out
    assert TOKEN not in out + err
    assert (
        repo.files()["adapter_model.safetensors"] == (tmp_path / "run/adapter/adapter_model.safetensors").read_bytes()
    )


def test_a_refusal_ends_the_command_with_its_code_and_two_lines(hub, made, tmp_path):
    shutil.copytree(made.path, tmp_path / "run")
    hub.faults.append(("POST", "/api/repos/create", 403, 9))
    process = start(tmp_path / "run", "--base-model", "org/llama")
    out, err = process.communicate()
    assert process.returncode == 2
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-2].startswith(f"error: {REPO}: the token may not write there")
    assert err.splitlines()[-1].startswith("hint: make a token with the right to write")
