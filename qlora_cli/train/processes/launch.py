"""Launch of this process: alone, or as one of several by torchrun or `accelerate launch`."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass

from qlora_cli.errors import ArgumentError

HIDDEN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""Variables by which accelerate would take the processes over; each process trains as if it were alone."""


@dataclass(frozen=True)
class Launch:
    """The place of this process among those that train together, all on one machine."""

    rank: int = 0
    world_size: int = 1

    name: str = ""
    """The same in all processes of one launch, another one in other launches of this machine."""

    has_agent: bool = False
    """Whether a program such as torchrun ends the others when one process ends."""

    @property
    def command(self) -> str:
        """The command that starts `qlora` in as many processes."""
        return "qlora" if self.world_size == 1 else f"torchrun --nproc-per-node {self.world_size} -m qlora_cli"


def take_launch(environment: MutableMapping[str, str] = os.environ) -> Launch:
    """Read what the launcher says, hide it from the libraries, and leave this process one GPU to see.

    Call it before torch is imported: the GPUs are counted once.

    Raises:
        ArgumentError: if the variables do not fit together, or name several machines.
    """
    world_size = _number(environment, "WORLD_SIZE", 1)
    rank = _number(environment, "RANK", -1)
    local_rank = _number(environment, "LOCAL_RANK", rank)
    num_local_ranks = _number(environment, "LOCAL_WORLD_SIZE", world_size)
    for variable in HIDDEN:
        environment.pop(variable, None)
    if world_size == 1:
        return Launch()
    hint = f"start it with `{Launch(world_size=world_size).command} train RECIPE`"
    if not 0 <= rank < world_size:
        raise ArgumentError(f"WORLD_SIZE is {world_size}, but RANK is {rank if rank >= 0 else 'not set'}", hint=hint)
    if sys.platform != "linux":
        raise ArgumentError("several processes train together on Linux only", hint="start it with `qlora train RECIPE`")
    if local_rank != rank or num_local_ranks != world_size:
        raise ArgumentError("the processes are spread over several machines; a run trains on one", hint=hint)
    if "MASTER_ADDR" not in environment or "MASTER_PORT" not in environment:
        raise ArgumentError("MASTER_ADDR and MASTER_PORT are not set, so the processes cannot connect", hint=hint)
    visible = visible_gpu(environment.get("CUDA_VISIBLE_DEVICES"), rank, world_size)
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    parts = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    name = "/".join(environment.get(part, "") for part in parts)
    return Launch(rank, world_size, name, "TORCHELASTIC_RUN_ID" in environment)


def _number(environment: MutableMapping[str, str], variable: str, default: int) -> int:
    text = environment.get(variable, str(default))
    try:
        return int(text)
    except ValueError:
        raise ArgumentError(
            f"{variable} is '{text}', not a number", hint=f"unset {variable}, or use torchrun"
        ) from None


def visible_gpu(visible: str | None, rank: int, world_size: int) -> str | None:
    """CUDA_VISIBLE_DEVICES for one process of several on a machine; None leaves it as it is.

    Args:
        visible: the variable as it is; None where it is not set, so that all GPUs are in sight.

    Raises:
        ArgumentError: if fewer GPUs are in sight than there are processes.

    >>> visible_gpu(None, 1, 2), visible_gpu("4,5,6", 1, 2)
    ('1', '5')
    >>> visible_gpu("", 1, 2), visible_gpu("3", 1, 2)  # no GPU to use; one that the launcher chose
    (None, None)
    """
    if visible is None:
        return str(rank)
    gpus = [gpu.strip() for gpu in visible.split(",") if gpu.strip()]
    if len(gpus) < 2 or gpus[0] == "-1":
        return None
    if len(gpus) < world_size:
        raise ArgumentError(
            f"CUDA_VISIBLE_DEVICES is '{visible}', {len(gpus)} GPUs for {world_size} processes",
            hint=f"start {len(gpus)} processes: `{Launch(world_size=len(gpus)).command} train RECIPE`",
        )
    return gpus[rank]
