"""The engine: requests from any thread, one worker that owns the model."""

from __future__ import annotations

import threading
from collections import deque

import torch
from transformers import PreTrainedTokenizerBase

from qlora_cli.errors import ArgumentError
from qlora_cli.model.embedding_limits import UNBOUNDED
from qlora_cli.plan.machine.host_memory import available_bytes
from qlora_cli.serve.engine.bounds import Bounds
from qlora_cli.serve.engine.requests import EngineState, GenerationRequest, QueueFull
from qlora_cli.serve.engine.rows import Row
from qlora_cli.serve.engine.scheduler import EngineLimits, Scheduler, in_a_line
from qlora_cli.serve.engine.served_model import ServedModel
from qlora_cli.serve.engine.tickets import QueuedTicket

CLOSED = "the server is closing"


class BatchingEngine:
    """Answers many requests at once; what `Engine` in requests.py says."""

    def __init__(
        self,
        model: ServedModel,
        tokenizer: PreTrainedTokenizerBase,
        end_ids: frozenset[int],
        bounds: Bounds,
        limits: EngineLimits,
    ) -> None:
        """
        Args:
            model: what runs.
            tokenizer: of the model.
            end_ids: tokens that end a turn.
            bounds: what prompts may hold.
            limits: what is taken on at once.
        """
        self._model = model
        self._tokenizer = tokenizer
        self._end_ids = end_ids
        self._bounds = bounds
        self._limits = limits
        most = limits.max_cache_tokens or _room_for_tokens(model)
        self._scheduler = Scheduler(model, limits, most)
        self._changed = threading.Condition()
        self._arrived: deque[Row] = deque()  # not seen by the worker yet
        self._is_closing = self._is_ended = False
        self._num_running = self._num_waiting = 0
        self._num_finished = self._num_prompt_tokens = self._num_new_tokens = 0
        self._worker = threading.Thread(target=self._work, name="engine", daemon=True)
        self._worker.start()

    @property
    def names(self) -> tuple[str, ...]:
        """As `Engine`; without the base where its weights are not in memory, as under PiSSA."""
        return self._model.names

    @property
    def context(self) -> int | None:
        """As `Engine`."""
        return self._bounds.context

    def submit(self, request: GenerationRequest) -> QueuedTicket:
        """As `Engine`."""
        room = self._bounds.room_for_answer(request, self.names)
        ticket = QueuedTicket(self._wake)
        new_tokens = min(request.max_new_tokens, room)
        row = Row(request, ticket, new_tokens, self._tokenizer, self._end_ids, self._model.device)
        with self._changed:
            if self._is_closing:
                raise ArgumentError(CLOSED, hint="start it again: `qlora serve`")
            if len(self._arrived) + self._num_waiting >= self._limits.max_waiting:
                raise QueueFull(f"{self._limits.max_waiting} requests wait already")
            self._arrived.append(row)
            self._changed.notify_all()
        return ticket

    def state(self) -> EngineState:
        """As `Engine`."""
        with self._changed:
            return EngineState(
                num_running=self._num_running,
                num_waiting=len(self._arrived) + self._num_waiting,
                num_finished=self._num_finished,
                num_prompt_tokens=self._num_prompt_tokens,
                num_new_tokens=self._num_new_tokens,
            )

    def close(self, seconds: float) -> None:
        """As `Engine`."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._worker.join(timeout=max(seconds, 0))
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()
        self._worker.join()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _work(self) -> None:
        """The worker: it ends when the engine is closed, and for nothing else."""
        live: list[Row] = []
        while self._next_round(live):
            try:
                self._scheduler.advance()
            except Exception as fault:  # noqa: BLE001 - an engine whose worker has ended would hang every request
                self._scheduler.end_all(in_a_line(fault))
            live = self._counted(live)
        self._scheduler.end_all(CLOSED)
        self._counted(live)
        self._model.close()

    def _next_round(self, live: list[Row]) -> bool:
        """Wait for something to do, and take in what has arrived.

        Args:
            live: rows that are not finished; those that have arrived are added to it.
        """
        with self._changed:
            while not (live or self._arrived or self._is_closing):
                self._changed.wait()
            for row in self._arrived:
                self._scheduler.add(row)
            live += self._arrived
            self._arrived.clear()
            self._num_waiting = self._scheduler.num_waiting
            return bool(live) and not self._is_ended

    def _counted(self, live: list[Row]) -> list[Row]:
        """Rows that are left; the others are counted."""
        finished = [row for row in live if row.is_finished]
        with self._changed:
            self._num_finished += len(finished)
            self._num_prompt_tokens += sum(len(row.request.prompt_ids) for row in finished)
            self._num_new_tokens += sum(row.num_new_tokens for row in finished)
            self._num_running, self._num_waiting = self._scheduler.num_running, self._scheduler.num_waiting
        return [row for row in live if not row.is_finished]


def _room_for_tokens(model: ServedModel) -> int:
    """Tokens whose keys and values fill half of the memory that is free: a cache is copied while it grows."""
    each = model.abilities.cache_bytes_per_token
    return _free_bytes(model.device) // 2 // each if each else UNBOUNDED


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_bytes() or UNBOUNDED
