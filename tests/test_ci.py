"""GitHub's workflow runs what `.ci/run` runs, and `.ci/run` what CONTRIBUTING.md asks for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = (ROOT / ".ci" / "run").read_text("utf-8")
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]


def test_the_workflow_ends_with_the_script_and_before_it_only_installs():
    *before, last = [step["run"] for step in STEPS if "run" in step]
    assert last == "bash .ci/run"
    for line in "\n".join(before).splitlines():
        assert re.match(r"python -m venv |\.venv/bin/python -m pip install ", line), line


def test_the_script_runs_what_a_change_must_pass():
    asked = set(re.findall(r"`make ([a-z-]+)`(?:[^.;]*) must pass", (ROOT / "CONTRIBUTING.md").read_text("utf-8")))
    assert set(re.findall(r"^make ([a-z-]+)", SCRIPT, flags=re.MULTILINE)) >= {"test", "check", *asked}


def test_the_workflow_may_only_read():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert [job for job in WORKFLOW["jobs"].values() if "permissions" in job] == []


@pytest.mark.parametrize("action", [step["uses"] for step in STEPS if "uses" in step])
def test_actions_are_those_of_github_at_a_version(action):
    assert re.fullmatch(r"actions/[a-z-]+@v\d+", action)


def test_the_hooks_before_a_commit_are_the_commands_of_make_check():
    """Those of ruff mend what they can, as `make format` does."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    makefile = (ROOT / "Makefile").read_text("utf-8").replace("$(BIN)", ".venv/bin")
    [check] = re.findall(r"^check:.*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE)
    tools = {re.sub(r" --\w+| \.(?=\n|$)", "", line).strip() for line in check.splitlines()}
    assert {re.sub(r" --\w+", "", hook["entry"]) for repo in hooks for hook in repo["hooks"]} == tools
