"""Tokens per second and latency of `qlora serve`, beside `transformers serve`, both over HTTP and asked in turns.

    make bench-serve
    .venv/bin/python benchmarks/serve.py --base FOLDER --clients 1 8 32 --adapters 1 8
    .venv/bin/python benchmarks/serve.py --url http://127.0.0.1:8000 --models a b --clients 1 8 32

Without `--base` a small one is made by `qlora tiny`; adapters are random, of rank 16 on all linear layers. A model of
`transformers serve`, which answers to no adapter folder, is one adapter merged. With `--url` a server that runs already
is asked, ours or another that speaks OpenAI's API.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoTokenizer

from qlora_cli.model.base import load_base
from qlora_cli.model.tiny import TinyOptions, make_tiny_base
from qlora_cli.recipe.schema import ModelSection

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
SECONDS_TO_START = 120


@dataclass(frozen=True)
class Server:
    """One that answers, with the names that its models have there."""

    label: str
    url: str
    models: list[str]


@dataclass(frozen=True)
class Measured:
    """What one load of requests took."""

    tokens_per_second: float
    latencies: list[float]
    """Seconds from a request to the end of its answer."""


def main() -> None:
    """Measure and print a row for each load and server."""
    options = _options()
    print("| models | clients | server | tokens/s | latency, median | latency, p95 |\n|---|---|---|---|---|---|")
    if options.url:
        _measure([Server("server", options.url, options.models)], options)
        return
    with tempfile.TemporaryDirectory() as scratch:
        base = options.base or _tiny_base(Path(scratch) / "base", options.steps)
        for num_adapters in options.adapters:
            folders = [Path(scratch) / f"{num_adapters}-{n}" for n in range(num_adapters)]
            for n, folder in enumerate(folders):
                _save_adapter(folder, base, n)
            with _both(folders) as servers:
                _measure(servers, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="model folder; a tiny one is made where it is left out")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="printed is the one in the middle by tokens/s")
    parser.add_argument("--steps", type=int, default=100, help="of the tiny base")
    parser.add_argument("--url", help="of a server that runs already")
    parser.add_argument("--models", nargs="+", default=["base"], help="names that the server knows")
    return parser.parse_args()


def _tiny_base(folder: Path, steps: int) -> Path:
    corpus = (ROOT / "recipes/data/mailbox.txt",)
    make_tiny_base(folder, TinyOptions(corpus, vocab_size=1024, steps=steps), lambda step, loss: None)
    return folder


def _save_adapter(folder: Path, base: Path, seed: int) -> None:
    """A random adapter, and beside it what the base becomes when it is merged."""
    torch.manual_seed(seed)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = get_peft_model(load_base(ModelSection(base_model=str(base)), None), config)
    assert isinstance(tuned, PeftModel)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01)
    tuned.save_pretrained(folder)
    tuned.merge_and_unload().save_pretrained(_merged(folder))
    AutoTokenizer.from_pretrained(base).save_pretrained(_merged(folder))


def _merged(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-merged")


@contextmanager
def _both(folders: list[Path]) -> Iterator[list[Server]]:
    """Both servers; they end with the block."""
    ours, theirs = _free_port(), _free_port()
    names = [f"a{number}" for number in range(len(folders))]
    named = [f"{name}={folder}" for name, folder in zip(names, folders, strict=True)]
    with ExitStack() as started:
        started.enter_context(_process([BIN / "qlora", "serve", *named, "--port", ours]))
        started.enter_context(_process([BIN / "transformers", "serve", "--port", theirs, "--log-level", "error"]))
        servers = [
            Server("`qlora serve`", f"http://127.0.0.1:{ours}", names),
            Server("`transformers serve`", f"http://127.0.0.1:{theirs}", [str(_merged(folder)) for folder in folders]),
        ]
        for server in servers:
            _wait(server)
        yield servers


@contextmanager
def _process(command: list[object]) -> Iterator[None]:
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def _wait(server: Server) -> None:
    """Until it answers to the first request for each of its models, which loads it."""
    deadline = time.monotonic() + SECONDS_TO_START
    for model in server.models:
        while True:
            try:
                _ask(server.url, model, 0, 2)
                break
            except (urllib.error.URLError, ConnectionError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)


def _ask(url: str, model: str, number: int, max_new_tokens: int) -> int:
    """Put one of the questions; how many tokens the answer has."""
    question = f"Ticket {number}: the printer on floor {number % 7} is out of paper." * 2
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_new_tokens,
        "temperature": 0,
        "stream": False,
    }
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(f"{url.rstrip('/')}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(asked, timeout=600) as answer:
        return int(json.load(answer)["usage"]["completion_tokens"])


def _measure(servers: list[Server], options: argparse.Namespace) -> None:
    """Each load in turns, as many rounds as asked for; print the round in the middle."""
    for num_clients in options.clients:
        rounds = [[_load(server, num_clients, options) for server in servers] for _ in range(options.rounds)]
        for server, measured in zip(servers, zip(*rounds, strict=True), strict=True):
            middle = sorted(measured, key=lambda one: one.tokens_per_second)[len(measured) // 2]
            p95 = statistics.quantiles(middle.latencies, n=20)[-1]
            print(
                f"| {len(server.models)} | {num_clients} | {server.label} | {middle.tokens_per_second:,.0f} "
                f"| {statistics.median(middle.latencies):.2f} s | {p95:.2f} s |",
                flush=True,
            )


def _load(server: Server, num_clients: int, options: argparse.Namespace) -> Measured:
    """Clients that ask again once they have their answer, for one model after the other."""
    numbers = iter(range(options.requests))
    lock = threading.Lock()
    latencies: list[float] = []
    num_tokens = 0

    def work() -> None:
        nonlocal num_tokens
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            started = time.perf_counter()
            answered = _ask(server.url, server.models[number % len(server.models)], number, options.max_new_tokens)
            with lock:
                latencies.append(time.perf_counter() - started)
                num_tokens += answered

    started = time.perf_counter()
    clients = [threading.Thread(target=work) for _ in range(num_clients)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert len(latencies) == options.requests, "some requests got no answer"
    return Measured(num_tokens / (time.perf_counter() - started), latencies)


if __name__ == "__main__":
    main()
