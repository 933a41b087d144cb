"""Many clients for a minute: each answer is the one that is given alone."""

from __future__ import annotations

import random
import resource
import shutil
import threading
import time

import httpx
import pytest
import yaml

from tests.serve.http.hostile import CHAT

LOADS = pytest.mark.parametrize(
    ("num_clients", "seconds"), [(8, 4), pytest.param(64, 60, marks=pytest.mark.torture)], ids=["short", "long"]
)

ROUNDED_LOGPROB_BOUND = 0.25
"""In bfloat16, of the same token in a batch and alone: 8 rounding steps (2^-8) of a logit of 8."""


def asked(number: int) -> dict:
    drawn = {"temperature": 1.2, "seed": number} if number % 3 == 0 else {"temperature": 0}
    content = f"Count to {number}." + " please" * (3 * number % 11)
    messages = [{"role": "user", "content": content}]
    return {"model": ("first", "second", "base")[number % 3 - 1], "messages": messages, "max_tokens": 16} | drawn


def choice(server, number: int) -> dict:
    got = server.post(CHAT, asked(number) | {"logprobs": True})
    assert got.status_code == 200, got.text
    return got.json()["choices"][0]


def ask_for(server, num_clients: int, seconds: float) -> list[tuple[int, dict]]:
    """Numbers and answers; a fault stands in place of one."""
    answers: list[tuple[int, dict]] = []
    end = time.monotonic() + seconds

    def ask_until_the_end(seed: int) -> None:
        generator = random.Random(seed)
        while time.monotonic() < end:
            number = generator.randrange(12)
            try:
                answers.append((number, choice(server, number)))
            except (AssertionError, httpx.HTTPError) as fault:
                answers.append((number, {"fault": f"{type(fault).__name__}: {fault}"}))

    threads = [threading.Thread(target=ask_until_the_end, args=(seed,)) for seed in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"{len(answers)} answers to {num_clients} clients, at most {most:,.0f} MiB")
    assert len(answers) >= num_clients
    return answers


@LOADS
def test_in_float32_every_answer_is_the_one_given_alone(server, num_clients, seconds):
    alone = [choice(server, number)["message"]["content"] for number in range(12)]
    answers = ask_for(server, num_clients, seconds)
    wrong = [(n, got) for n, got in answers if "fault" in got or got["message"]["content"] != alone[n]]
    assert wrong == []


@pytest.fixture(scope="module")
def rounded_server(start_server, folders, tmp_path_factory):
    """The same adapters on their base in bfloat16."""
    copies = []
    for folder in folders:
        copies.append(shutil.copytree(folder, tmp_path_factory.mktemp("rounded") / folder.name))
        path = copies[-1] / "recipe.yaml"
        recipe = yaml.safe_load(path.read_text())
        recipe["model"]["dtype"] = "bfloat16"
        path.write_text(yaml.safe_dump(recipe))
    return start_server(folders=copies)


@LOADS
def test_in_bfloat16_probabilities_are_within_rounding_of_those_given_alone(rounded_server, num_clients, seconds):
    alone = [choice(rounded_server, number) for number in range(12)]
    answers = ask_for(rounded_server, num_clients, seconds)
    assert [got for _, got in answers if "fault" in got] == []
    most, num_other_texts = 0.0, 0
    for number, got in answers:
        num_other_texts += got["message"]["content"] != alone[number]["message"]["content"]
        for mine, other in zip(got["logprobs"]["content"], alone[number]["logprobs"]["content"], strict=False):
            if mine["token"] != other["token"]:
                break  # what follows has another beginning
            most = max(most, abs(mine["logprob"] - other["logprob"]))
    print(f"log-probabilities differ by {most:.4f} at most; {num_other_texts} texts are others")
    assert 0 < most < ROUNDED_LOGPROB_BOUND
