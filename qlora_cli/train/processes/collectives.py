"""Collective operations of a run's processes: sums of gradients and losses, and little else.

Each process trains as if it were alone, on its share of every step's rows. Accelerate's own data parallelism is not
used: it would add collective operations to every forward pass, so that a process which repeats a forward pass, after
it ran out of memory, would enter a collective operation that no other rank has reached, and hang. All collective
operations are in this file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice

import torch
from torch import distributed, nn

from qlora_cli.errors import ArgumentError, IdentityError
from qlora_cli.plan.trace.gradient_buckets import buckets
from qlora_cli.train.processes.monitor import SINGLE_PROCESS, ProcessMonitor

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""Time that a collective operation waits for a live process that does not join; a dead one is noticed sooner."""


class ProcessGroup:
    """The processes that train together, seen from one of them; alone it costs nothing."""

    def __init__(self, monitor: ProcessMonitor = SINGLE_PROCESS) -> None:
        self._monitor = monitor
        self.rank = monitor.launch.rank
        self.world_size = monitor.launch.world_size

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes the run and shows it."""
        return self.rank == 0

    def init(self, device: torch.device) -> None:
        """Open the backends of collective operations: gloo between CPUs, NCCL between GPUs.

        Raises:
            ArgumentError: if MASTER_PORT is taken.
        """
        if self.world_size == 1:
            return
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, torch.get_num_threads() // self.world_size))
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all are on this machine, and nobody else should listen
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        try:
            distributed.init_process_group(
                backend, rank=self.rank, world_size=self.world_size, timeout=COLLECTIVE_TIMEOUT
            )
        except RuntimeError as fault:
            self._monitor.raise_if_failed()
            raise ArgumentError(
                f"the processes cannot talk through {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}: "
                f"{str(fault).splitlines()[0]}",
                hint="choose another port: `torchrun --master-port 29501 ...`",
            ) from fault

    def destroy(self) -> None:
        """Close what `init` opened, after everybody's last operation."""
        if self.world_size > 1:
            distributed.destroy_process_group()

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all processes, in float64."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        with self._connection_faults():
            distributed.all_reduce(total)
        summed: list[float] = total.tolist()
        return summed

    def all_reduce_max(self, value: int) -> int:
        """The largest of all processes' values."""
        if self.world_size == 1:
            return value
        largest = torch.tensor(value)
        with self._connection_faults():
            distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
        return int(largest)

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.all_reduce_max(0)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Each gradient becomes the sum over all processes, added in float32; the same to the bit in all of them.

        A parameter without a gradient in every process keeps none; where some have one, the others count as zero.
        """
        if self.world_size == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        left = iter(trained)
        for sizes in buckets([parameter.numel() for parameter in trained]):
            bucket = list(islice(left, len(sizes)))
            present = [float(parameter.grad is not None) for parameter in bucket]
            pieces = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in bucket]
            flat = torch.cat(
                [*(piece.float().flatten() for piece in pieces), torch.tensor(present, device=pieces[0].device)]
            )
            with self._connection_faults():
                distributed.all_reduce(flat)
            is_present = flat[-len(bucket) :].tolist()
            start = 0
            for parameter, piece, count in zip(bucket, pieces, is_present, strict=True):
                if count:
                    parameter.grad = piece.copy_(flat[start : start + piece.numel()].view_as(piece))
                start += piece.numel()

    def broadcast_parameters(self, parameters: Iterable[nn.Parameter]) -> None:
        """Every process gets the values of rank 0."""
        if self.world_size == 1:
            return
        with self._connection_faults():
            for parameter in parameters:
                distributed.broadcast(parameter.data, src=0)

    def all_gather_bytes(self, content: bytes) -> list[bytes]:
        """The content of each process, by rank, in every process."""
        if self.world_size == 1:
            return [content]
        length = self.all_reduce_max(len(content))
        labelled = len(content).to_bytes(8, "little") + content
        padded = torch.frombuffer(bytearray(labelled.ljust(length + 8)), dtype=torch.uint8)
        all_padded = [torch.empty_like(padded) for _ in range(self.world_size)]
        with self._connection_faults():
            distributed.all_gather(all_padded, padded)
        contents = [bytes(one.tolist()) for one in all_padded]
        return [one[8 : 8 + int.from_bytes(one[:8], "little")] for one in contents]

    def check_equal(self, what: str, value: str) -> None:
        """Make sure that something is the same in all processes.

        Raises:
            IdentityError: naming the first process in which it differs from rank 0's.
        """
        values = [content.decode() for content in self.all_gather_bytes(value.encode())]
        for rank, other in enumerate(values):
            if other != values[0]:
                raise IdentityError(
                    f"process {rank} has another {what} than process 0: {other} instead of {values[0]}",
                    hint="all processes of a run must find the same files and GPUs of the same kind",
                )

    @contextmanager
    def _connection_faults(self) -> Iterator[None]:
        """A broken connection is another process's end; that process, or the first to see its end, says why."""
        try:
            yield
        except RuntimeError:
            self._monitor.raise_if_failed()
            raise
