"""Tokens per second and latency of the engine behind `qlora serve`, beside one request at a time.

    make bench-serve
    .venv/bin/python benchmarks/serve.py --base FOLDER --clients 1 8 32 --adapters 1 8
    .venv/bin/python benchmarks/serve.py --url http://127.0.0.1:8000 --models a b --clients 1 8 32

Without `--base` a small one is made by `qlora tiny`; adapters are random. With `--url` a server that runs already is
asked over its OpenAI routes, ours or another such as `transformers serve`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from peft import LoraConfig, get_peft_model

from qlora_cli.model.base import load_base
from qlora_cli.model.tiny import TinyOptions, make_tiny_base
from qlora_cli.model.tuned import find_tuned
from qlora_cli.recipe.schema import ModelSection
from qlora_cli.serve.engine.loading import LoadedEngine, load_engine
from qlora_cli.serve.engine.requests import Finish, GenerationRequest

ROOT = Path(__file__).resolve().parents[1]

Ask = Callable[[str, int], int]
"""From a model's name and the number of a question to the tokens of the answer."""


def main() -> None:
    """Measure and print."""
    options = _options()
    if options.url:
        _table(lambda model, number: _ask_over_http(options, model, number), options.models, "server", options)
        return
    with tempfile.TemporaryDirectory() as scratch:
        base = options.base or _tiny_base(Path(scratch) / "base", options.steps)
        for num_adapters in options.adapters:
            folders = {f"a{n}": _adapter(Path(scratch) / f"{num_adapters}-{n}", base, n) for n in range(num_adapters)}
            loaded = load_engine([(name, find_tuned(folder)) for name, folder in folders.items()])
            ask = _asking(loaded, options.max_new_tokens)
            ask("a0", 0)  # the first calls of torch take longer
            _table(ask, list(folders), f"{num_adapters} adapters", options)
            loaded.engine.close(0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="model folder; a tiny one is made where it is left out")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--steps", type=int, default=100, help="of the tiny base")
    parser.add_argument("--url", help="of a server that runs already")
    parser.add_argument("--models", nargs="+", default=["base"], help="names that the server knows")
    return parser.parse_args()


def _tiny_base(folder: Path, steps: int) -> Path:
    corpus = (ROOT / "recipes/data/mailbox.txt",)
    make_tiny_base(folder, TinyOptions(corpus, vocab_size=1024, steps=steps), lambda step, loss: None)
    return folder


def _adapter(folder: Path, base: Path, seed: int) -> Path:
    """A random adapter of rank 16 on all linear layers."""
    torch.manual_seed(seed)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = get_peft_model(load_base(ModelSection(base_model=str(base)), None), config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01)
    tuned.save_pretrained(folder)
    return folder


def _question(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Ticket {number}: the printer on floor {number % 7} is out of paper." * 2}]


def _asking(loaded: LoadedEngine, max_new_tokens: int) -> Ask:
    prompts: dict[int, tuple[int, ...]] = {}
    lock = threading.Lock()

    def ask(model: str, number: int) -> int:
        with lock:
            if number not in prompts:
                prompts[number] = tuple(loaded.renderer.prompt_ids(_question(number)))
        *_, finish = loaded.engine.submit(GenerationRequest(prompts[number], model, max_new_tokens)).events()
        assert isinstance(finish, Finish)
        assert not finish.error, finish.error
        return finish.num_new_tokens

    return ask


def _ask_over_http(options: argparse.Namespace, model: str, number: int) -> int:
    body = {
        "model": model,
        "messages": _question(number),
        "max_tokens": options.max_new_tokens,
        "temperature": 0,
        "stream": False,
    }
    asked = urllib.request.Request(
        f"{options.url.rstrip('/')}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(asked, timeout=600) as answer:
        return int(json.load(answer)["usage"]["completion_tokens"])


def _table(ask: Ask, models: list[str], what: str, options: argparse.Namespace) -> None:
    for num_clients in options.clients:
        latencies, num_tokens, seconds = _load(ask, models, num_clients, options.requests)
        p95 = statistics.quantiles(latencies, n=20)[-1]
        print(
            f"{what}, {num_clients} clients: {num_tokens / seconds:,.0f} tokens/s, "
            f"latency {statistics.median(latencies):.2f} s (median), {p95:.2f} s (p95)",
            flush=True,
        )


def _load(ask: Ask, models: list[str], num_clients: int, num_requests: int) -> tuple[list[float], int, float]:
    """Latencies in seconds, new tokens in all, and seconds in all; each client asks again once it has its answer."""
    numbers = iter(range(num_requests))
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
            answered = ask(models[number % len(models)], number)
            with lock:
                latencies.append(time.perf_counter() - started)
                num_tokens += answered

    started = time.perf_counter()
    clients = [threading.Thread(target=work) for _ in range(num_clients)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return latencies, num_tokens, time.perf_counter() - started


if __name__ == "__main__":
    main()
