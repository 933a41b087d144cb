"""Calls from another program: its signals, streams and environment are afterwards as they were."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Callable, Collection
from functools import wraps
from typing import ParamSpec, TypeVar

from qlora_cli import compat, console, environment
from qlora_cli.errors import ArgumentError, QloraError
from qlora_cli.interruption import handed_on, is_listening

AnyPath = str | os.PathLike[str]
"""A path, or what stands for one: the `run` of a training result."""

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def called(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """The function, for a program or a notebook to call; our own commands, which have a frame already, call it bare.

    Secrets are kept out of what is written meanwhile, and signals are handed on (`interruption.handed_on`). When the
    function is over the environment variables are as before, where recipes and launchers have set some. Memory is given
    back, also after an error, whose traceback would hold a model: notebooks keep the last one.
    """

    @wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if is_listening():
            return function(*args, **kwargs)
        variables = dict(os.environ)
        if "torch" not in sys.modules:
            environment.let_idle_threads_sleep()
        compat.keep_imports_quiet()
        compat.import_bars_quietly()
        try:
            with console.streams_kept_clean(), handed_on():
                return function(*args, **kwargs)
        except (QloraError, KeyboardInterrupt) as fault:
            _forget_locals(fault)
            raise
        except (ImportError, AttributeError) as fault:
            from qlora_cli import upstream  # 20 ms that only this needs

            error = upstream.behind(fault)
            if error is None:
                raise
            _forget_locals(fault)
            raise error from fault
        finally:
            _restore(variables)
            _give_back_memory()

    return call


def _restore(variables: dict[str, str]) -> None:
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)


def _forget_locals(fault: BaseException) -> None:
    """Clear the local variables of what has failed; those of functions that still run stay."""
    seen: set[int] = set()
    left: list[BaseException | None] = [fault]
    while left:
        one = left.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            left += [one.__cause__, one.__context__]


def _give_back_memory() -> None:
    """Free what models took: they hold reference cycles, and torch keeps freed GPU memory for itself."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def check_range(name: str, value: float | None, low: float, high: float = float("inf")) -> None:
    """Refuse an argument that is not from `low` to `high`.

    Raises:
        ArgumentError: with the value.
    """
    if value is not None and not low <= value <= high:
        limits = f"at least {low}" if high == float("inf") else f"from {low} to {high}"
        raise ArgumentError(f"{name} is {value}", hint=f"give a number {limits}")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Refuse an argument that is none of `choices`.

    Raises:
        ArgumentError: with the value.
    """
    if value not in choices:
        raise ArgumentError(f"{name} is {value!r}", hint=f"choose {' or '.join(map(repr, choices))}")
