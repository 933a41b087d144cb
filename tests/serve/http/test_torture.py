"""Many clients for a minute: each answer is the one that is given alone."""

from __future__ import annotations

import random
import threading
import time

import httpx
import pytest

from tests.serve.http.hostile import CHAT


def asked(number: int) -> dict:
    drawn = {"temperature": 1.2, "seed": number} if number % 3 == 0 else {"temperature": 0}
    content = f"Count to {number}." + " please" * (3 * number % 11)
    messages = [{"role": "user", "content": content}]
    return {"model": ("first", "second", "base")[number % 3 - 1], "messages": messages, "max_tokens": 16} | drawn


@pytest.mark.parametrize(
    ("num_clients", "seconds"), [(8, 4), pytest.param(64, 60, marks=pytest.mark.torture)], ids=["short", "long"]
)
def test_in_float32_every_answer_is_the_one_given_alone(server, num_clients, seconds):
    def answer(number: int) -> str:
        got = server.post(CHAT, asked(number))
        assert got.status_code == 200, got.text
        return got.json()["choices"][0]["message"]["content"]

    alone = [answer(number) for number in range(12)]
    wrong, counts = [], []
    end = time.monotonic() + seconds

    def ask_until_the_end(seed: int) -> None:
        generator = random.Random(seed)
        while time.monotonic() < end:
            number = generator.randrange(12)
            try:
                told = answer(number)
            except (AssertionError, httpx.HTTPError) as fault:
                told = f"{type(fault).__name__}: {fault}"
            counts.append(number)
            if told != alone[number]:
                wrong.append((number, told))

    threads = [threading.Thread(target=ask_until_the_end, args=(seed,)) for seed in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{len(counts)} answers to {num_clients} clients")
    assert wrong == []
    assert len(counts) >= num_clients
