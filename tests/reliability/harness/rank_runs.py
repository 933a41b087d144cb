"""`qlora train` in two processes that start together, each forked from a server that has the libraries loaded.

A process can be made to kill itself at one call of one function, which is `kill -9` at exactly that moment.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file

from qlora_cli.train.processes import rendezvous
from tests.reliability.harness.forkserver import ForkServer

NUM_RANKS = 2
OUT_OF_PATIENCE_SECONDS = 90
"""After so long a process that should have ended is killed, so that the test fails and does not hang."""

NAMES = (
    "adapter_model.safetensors",
    "optimizer.safetensors",
    "scheduler.json",
    *(
        f"random{of}.{kind}"
        for of in ("", *(f"-{rank}" for rank in range(NUM_RANKS)))
        for kind in ("json", "safetensors")
    ),
)
"""Files that a resume needs; `random` of a single process, `random-0` and so on of several."""


@dataclass(frozen=True)
class Outcome:
    """How processes that started together ended."""

    exit_codes: list[int]
    """In the order of ranks; minus the number of the signal where one ended the process."""

    seconds: list[float]
    """When each ended, after the start."""

    logs: list[str]

    @property
    def spread(self) -> float:
        """Seconds between the first end and the last."""
        return max(self.seconds) - min(self.seconds)


@dataclass(frozen=True)
class Ranks:
    """Servers from which the processes of a run are forked, one for each rank."""

    servers: list[ForkServer]
    logs: Path

    def run(self, arguments: list[str], *, options: dict[int, dict[str, Any]] | None = None, num: int = 2) -> Outcome:
        """Run `qlora` with `arguments` in `num` processes.

        Args:
            options: for a rank, keyword arguments of `qlora` below beside the first four.
        """
        return self.call(f"{__name__}:qlora", arguments, options=options, num=num)

    def call(
        self,
        function: str,
        arguments: list[str] | None = None,
        *,
        options: dict[int, dict[str, Any]] | None = None,
        num: int = NUM_RANKS,
    ) -> Outcome:
        """Call a function in `num` processes; it gets `rank`, `num`, `port`, `arguments` and the rank's options."""
        port = free_port()
        started, children = time.monotonic(), []
        paths = [self.logs / f"{port}-{rank}.log" for rank in range(num)]
        for rank in range(num):
            asked = {"rank": rank, "num": num, "port": port, "arguments": arguments or []}
            asked |= (options or {}).get(rank, {})
            children.append(self.servers[rank].start(function, asked, log=paths[rank]))
        ends: dict[int, float] = {}
        while len(ends) < num and time.monotonic() < started + OUT_OF_PATIENCE_SECONDS:
            for rank, child in enumerate(children):
                if rank not in ends and has_ended(child.pid):
                    ends[rank] = time.monotonic() - started
            time.sleep(0.01)
        for rank, child in enumerate(children):
            if rank not in ends:
                os.kill(child.pid, signal.SIGKILL)
                ends[rank] = time.monotonic() - started
        exit_codes = [child.wait() for child in children]
        return Outcome(exit_codes, [ends[rank] for rank in range(num)], [path.read_text() for path in paths])


def has_ended(pid: int) -> bool:
    """Whether the process is gone; the server that forked it waits for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(logs: Path) -> Iterator[Ranks]:
    """Start the servers, both together."""
    with ExitStack() as stack:
        servers = [ForkServer(__name__) for _ in range(NUM_RANKS)]
        for server in servers:
            stack.enter_context(server)
        yield Ranks(servers, logs)


def qlora(
    rank: int,
    num: int,
    port: int,
    arguments: list[str],
    killed_at: tuple[str, int] | None = None,
    signals_at: tuple[str, int, list[int]] | None = None,
    nan_at: int | None = None,
    gradients: str | None = None,
    seconds_to_meet: float | None = None,
) -> int:
    """In a child: the command line, as torchrun would start it.

    Args:
        killed_at: function, as `module:name`, and which call of it ends the process; `start` for before the first line.
        signals_at: the same with the numbers of signals that the process sends itself.
        nan_at: which forward pass has a loss that is not a number.
        gradients: folder for the gradients of each step, as they are summed and not yet clipped.
        seconds_to_meet: how long it waits for the other processes, in place of 25 s.
    """
    from qlora_cli.cli import app

    if num > 1:
        set_place(rank, num, port)
    if seconds_to_meet is not None:
        rendezvous.TIMEOUT_SECONDS = seconds_to_meet
    if killed_at is not None:
        if killed_at[0] == "start":
            os.kill(os.getpid(), signal.SIGKILL)
        send_at(*killed_at, [signal.SIGKILL])
    if signals_at is not None:
        send_at(*signals_at)
    if nan_at is not None:
        spoil_loss(nan_at)
    if gradients is not None:
        keep_gradients(Path(gradients))
    sys.argv = ["qlora", *arguments]
    try:
        app.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def set_place(rank: int, num: int, port: int) -> None:
    """Set the variables that torchrun sets."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def send_at(where: str, call: int, numbers: list[int]) -> None:
    """Send this process signals at the so-maniest call of a function, before its first line."""
    module_name, _, name = where.partition(":")
    owner: Any = importlib.import_module(module_name)
    *owners, name = name.split(".")
    for one in owners:
        owner = getattr(owner, one)
    function = getattr(owner, name)
    calls = 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            send_all(numbers)
        return function(*arguments, **options)

    setattr(owner, name, counted)


def send_all(numbers: list[int]) -> None:
    """Send this process signals, each when the one before has been handled, whatever its handler raises."""
    try:
        os.kill(os.getpid(), numbers[0])
    finally:
        if numbers[1:]:
            send_all(numbers[1:])


def spoil_loss(call: int) -> None:
    """Make the loss of a forward pass NaN."""
    from qlora_cli.train.trainer import QloraTrainer

    function = QloraTrainer.compute_loss
    calls = 0

    def spoiled(self: QloraTrainer, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return function(self, *arguments, **options) * (float("nan") if calls == call else 1)

    QloraTrainer.compute_loss = spoiled


def keep_gradients(folder: Path) -> None:
    """Write what each update starts from."""
    from qlora_cli.train.trainer import QloraTrainer

    function = QloraTrainer._clip_grad_norm

    def kept(self: QloraTrainer, model: Any) -> Any:
        found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        save_file(found, folder / f"{self.state.global_step}.safetensors")
        return function(self, model)

    QloraTrainer._clip_grad_norm = kept


def write_recipe(path: Path, base: Path, data: Path, /, **sections: dict[str, Any]) -> Path:
    """A run of eight steps with dropout over a little more than three epochs, saved and evaluated every two steps.

    Adapters on two modules of a layer, and activations kept, make its steps take half as long.
    """
    values: dict[str, Any] = {
        "name": "two",
        "model": {"base_model": str(base)},
        "lora": {"r": 4, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]},
        "data": {"train": str(data), "eval_fraction": 0.2, "max_length": 128, "packing": False},
        "training": {
            "max_steps": 8,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 4,
            "learning_rate": 0.01,
            "gradient_checkpointing": False,
            "save_strategy": "steps",
            "save_steps": 2,
        },
        "eval": {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 2},
    }
    for section, keys in sections.items():
        merged = {**values.get(section, {}), **keys}
        values[section] = {key: value for key, value in merged.items() if value is not None}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def content(run: Path, step: int = 8) -> dict[str, bytes]:
    """The bytes that two equal runs share: the adapter, and all that a resume from the last checkpoint would need."""
    checkpoint = run / "checkpoints" / f"step-{step:06d}"
    names = [name for name in NAMES if (checkpoint / name).exists()]
    return {name: (checkpoint / name).read_bytes() for name in names} | {
        "final": (run / "adapter" / "adapter_model.safetensors").read_bytes()
    }


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock and on the memory."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key not in ("tokens_per_second", "peak_memory_bytes")}
        for line in lines
    ]
