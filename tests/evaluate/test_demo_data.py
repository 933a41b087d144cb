"""The demo's task: its files are what the script makes, and its test rows are unseen."""

import json
import re
import runpy
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from qlora_cli.recipe.shipped import command_for_base, find_shipped

DATA = Path(__file__).parents[2] / "recipes" / "data"


def tickets(name):
    rows = [json.loads(line)["messages"] for line in (DATA / name).read_text(encoding="utf-8").splitlines()]
    return {user["content"]: assistant["content"] for user, assistant in rows}


def test_the_script_makes_the_files_that_ship(tmp_path):
    subprocess.run([sys.executable, str(DATA / "make_tickets.py"), str(tmp_path)], check=True)
    for made in ("tickets_train.jsonl", "tickets_test.jsonl", "mailbox.txt"):
        assert (tmp_path / made).read_bytes() == (DATA / made).read_bytes()


def test_there_are_900_tickets_to_learn_from_and_150_held_out():
    assert (len(tickets("tickets_train.jsonl")), len(tickets("tickets_test.jsonl"))) == (900, 150)


@pytest.mark.parametrize("seen", ["tickets_train.jsonl", "mailbox.txt"])
def test_no_held_out_ticket_was_seen(seen):
    text = (DATA / seen).read_text(encoding="utf-8")
    assert not [ticket for ticket in tickets("tickets_test.jsonl") if json.dumps(ticket) in text or ticket in text]


def test_no_held_out_pair_of_problem_and_impact_is_in_what_is_learned_from():
    script = runpy.run_path(str(DATA / "make_tickets.py"), run_name="script")
    problems = [problem.split("{product}") for phrases in script["PROBLEMS"].values() for problem in phrases]
    impacts = [impact for phrases in script["IMPACTS"].values() for impact in phrases]

    def pairs(texts):
        found = set()
        for ticket in texts:
            named = [tuple(problem) for problem in problems if all(part in ticket for part in problem)]
            found |= set(product(named, (impact for impact in impacts if impact in ticket)))
        return found

    held_out = pairs(tickets("tickets_test.jsonl"))
    assert len(held_out) > 100
    assert held_out.isdisjoint(pairs(tickets("tickets_train.jsonl")))
    mailbox = (DATA / "mailbox.txt").read_text(encoding="utf-8").split("\n\n")
    assert len(pairs(mailbox)) > 1000
    assert held_out.isdisjoint(pairs(mailbox))


def test_the_base_never_reads_an_answer():
    mailbox = (DATA / "mailbox.txt").read_text(encoding="utf-8")
    assert "team:" not in mailbox
    assert "priority:" not in mailbox


def test_the_demo_ends_with_a_question_of_the_held_out_file():
    script = (DATA.parent / "demo.sh").read_text(encoding="utf-8")
    [question] = re.findall(r'--prompt "(.*)"$', script, flags=re.MULTILINE)
    assert question in tickets("tickets_test.jsonl")
    assert script.rstrip().endswith(f'--prompt "{question}"')


def test_the_demo_makes_its_base_with_the_command_that_its_recipe_names():
    script = (DATA.parent / "demo.sh").read_text(encoding="utf-8")
    assert f"show {find_shipped('smoke').first} --force\n" in script
    assert command_for_base("runs/tiny-base") == find_shipped("smoke").first
