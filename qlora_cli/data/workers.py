"""Python work spread over processes, results in order, with a bounded number of items in flight.

Forked workers inherit what the function holds (tokenizer, compiled template) without pickling it. Forking is safe
here because the parent has started no thread of the tokenizer's yet, and a worker never touches torch.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Any, TypeVar

from qlora_cli.errors import ResourceError
from qlora_cli.interruption import STOP_SIGNALS

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_WORKERS = 16
MIN_ITEMS = 4
"""Fewer items than this are done in this process: starting workers would take longer."""

YOUNG_OBJECTS = 50_000
"""Objects that a worker makes before it looks for garbage among them; Python's 700 are half a batch of rows."""

_function: Callable[[Any], Any]  # of this worker process; set once, when it starts


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
    """Each item with its result, over as many processes as there are cores; both cross the border pickled.

    Raises:
        ResourceError: if the system killed a worker.
    """
    items = iter(items)
    head = list(islice(items, MIN_ITEMS))
    num_workers = min(num_cores(), MAX_WORKERS)
    can_fork = "fork" in multiprocessing.get_all_start_methods()
    if num_workers == 1 or len(head) < MIN_ITEMS or not can_fork:
        for item in chain(head, items):
            yield item, function(item)
        return
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start, initargs=(function,))
    pending: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in chain(head, items):
            pending.append((item, pool.submit(_call, item)))
            if len(pending) > 2 * num_workers:
                yield _result_of(pending.popleft())
        while pending:
            yield _result_of(pending.popleft())
    except BrokenProcessPool as fault:
        raise ResourceError(
            "a process that prepared data was killed, most likely for memory",
            hint="free memory, or split rows of many megabytes",
        ) from fault
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    # The libraries' objects are not garbage; searching through them again and again took a tenth of the time.
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core has a process already
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot end its workers, and they would hold its locks for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in a worker
    parent.join()
    os._exit(1)


def _result_of(submitted: tuple[Item, Future[Result]]) -> tuple[Item, Result]:
    item, future = submitted
    return item, future.result()


def _call(item: Any) -> Any:
    return _function(item)
