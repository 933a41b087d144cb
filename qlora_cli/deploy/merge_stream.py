"""From a base's checkpoint to the merged one: changed tensors in chunks of rows, all others copied byte for byte.

Names, order, files and types are the base's, so whatever reads the base reads the merged model. Reading, arithmetic
and writing of several tensors overlap, in threads; each holds a few chunks and never a tensor, unless a rule of
transformers mixes the rows of a parameter.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from qlora_cli.deploy.changes import Change, Replacement
from qlora_cli.deploy.checkpoint import Checkpoint, StoredTensor
from qlora_cli.deploy.checkpoint_map import CheckpointMap, Origin, Slab
from qlora_cli.deploy.fold_plan import FoldPlan
from qlora_cli.deploy.merged_layout import MergedLayout
from qlora_cli.deploy.stored_precision import StoredPrecision
from qlora_cli.deploy.ties import BrokenTie
from qlora_cli.deploy.weights_file import NewTensor
from qlora_cli.deploy.written_weights import WrittenWeights
from qlora_cli.errors import ArgumentError, IdentityError
from qlora_cli.progress import progress
from qlora_cli.run.disk_errors import refuse_full_disk

CHUNK_NUMBERS = 2**19
"""Numbers of a chunk: 2 MiB in float32, of which a thread holds four or five at once."""

MAX_THREADS = 8
"""More do not make a disk faster."""

FLUSH_BYTES = 2**27
"""Written between two flushes, so that the disk works while the arithmetic goes on, and not after it."""

Task = Callable[[], int]
"""A piece of work; it returns the bytes that it wrote."""


@dataclass(frozen=True)
class MergeSources:
    """What a merge reads."""

    base: Checkpoint
    """Its names, files and types are those of the merged model."""

    base_map: CheckpointMap
    values: Checkpoint
    """Where the weights come from: the base itself, or PiSSA's residual."""

    values_map: CheckpointMap


def write_merged_weights(
    sources: MergeSources, plan: FoldPlan, tie: BrokenTie | None, folder: Path, dtype: torch.dtype | None
) -> WrittenWeights:
    """Write the merged checkpoint into `folder`.

    Args:
        sources: the base.
        plan: what becomes of its parameters.
        tie: output head that gets a tensor of its own.
        folder: an empty one.
        dtype: of all floating tensors; None keeps the base's.

    Raises:
        ArgumentError: if the checkpoint has no place for a new bias.
        IdentityError: if a parameter to be changed is not in the checkpoint, or cannot be written as it is there.
        ResourceError: if the disk has no room for it.
        OSError: if the disk does not take it.
    """
    writer = _Writer(sources, plan, tie, folder, dtype)
    tasks = [*writer.changes(), *writer.copies()]
    refuse_full_disk(folder, writer.layout.num_bytes)
    with ExitStack() as stack:
        for file in writer.layout.files:
            stack.enter_context(file.opened())
        with progress("merging", writer.layout.num_bytes) as phase:
            unflushed = 0
            for num_bytes in _in_threads(tasks):
                phase.advance(num_bytes)
                unflushed += num_bytes
                if unflushed >= FLUSH_BYTES:
                    writer.layout.flush()
                    unflushed = 0
    writer.layout.write_index()
    return writer.written


def _in_threads(tasks: list[Task]) -> Iterator[int]:
    """Results in order; an error or an interruption ends the work that has not begun."""
    num_threads = min(MAX_THREADS, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(lambda task: task(), tasks)
    finally:
        pool.shutdown(cancel_futures=True)


class _Writer:
    """The files to be written, and the work that fills them."""

    def __init__(
        self, sources: MergeSources, plan: FoldPlan, tie: BrokenTie | None, folder: Path, dtype: torch.dtype | None
    ) -> None:
        self._sources, self._plan, self._tie = sources, plan, tie
        beside = self._head_of_its_own(dtype) | self._new_biases(dtype)
        self.layout = MergedLayout(sources.base, folder, dtype, beside, self._resized(), plan.dtypes)
        self.written = WrittenWeights(self.layout.num_parameters, self.layout.dtype)

    def changes(self) -> Iterator[Task]:
        """The work on tensors that change."""
        for origin in self._changed_origins():
            is_folded = any(name in self._plan.changes for name in origin.parameters)
            (self.written.folded if is_folded else self.written.dequantized).extend(origin.keys)
            yield self._in_rows(origin) or partial(self._write_whole, origin)
        for name, bias in self._plan.new_biases.items():
            key = self._sources.base_map.key_of(name)
            self.written.added.append(key)
            yield partial(self._write_new, key, bias)
        if self._tie is not None and self._tie.key is not None:
            self.written.folded.append(self._tie.key)
            change = self._plan.changes.get(self._tie.head)
            if isinstance(change, Replacement):
                yield partial(self._write_new, self._tie.key, change.tensor)
                return
            slabs = self._sources.values_map.slabs(self._tie.embedding)
            assert slabs is not None, "an embedding is one tensor"
            yield _Rows(self._sources.values, slabs, self.layout, [Slab(self._tie.key, 0)], change, None).write

    def copies(self) -> Iterator[Task]:
        """The work on all others."""
        for run in self.layout.runs({*self.written.folded, *self.written.dequantized}):
            if self.layout.is_copied(run[0]):
                self.written.copied += [tensor.key for tensor in run]
                yield partial(self.layout.copy, run)
            else:
                is_packed = run[0].key in self._sources.base.packed
                (self.written.dequantized if is_packed else self.written.converted).append(run[0].key)
                yield partial(self._convert, run[0])

    def _changed_origins(self) -> Iterable[Origin]:
        origins = {}
        for name in self._plan.names:
            origin = self._sources.base_map.origins.get(name)
            if origin is not None:
                origins[origin.parameters[0]] = origin
            elif self._tie is None or name != self._tie.head:
                raise IdentityError(
                    f"the adapter changes '{name}', which is not among the base's weights on disk",
                    place=str(self._sources.base.folder),
                    hint="an adapter belongs to the base model that it was trained on",
                )
        return origins.values()

    def _resized(self) -> dict[str, tuple[int, ...]]:
        """Shapes of embeddings that the adapter has more rows of than the base, or fewer."""
        shapes = {}
        for name, change in self._plan.changes.items():
            origin = self._sources.base_map.origins.get(name)
            if isinstance(change, Replacement) and origin is not None and origin.converter is None:
                [key] = origin.keys
                shapes[key] = tuple(change.tensor.shape)
        return shapes

    def _head_of_its_own(self, dtype: torch.dtype | None) -> dict[str, NewTensor]:
        if self._tie is None or self._tie.key is None:
            return {}
        [key] = self._sources.base_map.origins[self._tie.embedding].keys
        embedding, change = self._sources.base.tensors[key], self._plan.changes.get(self._tie.head)
        shape = tuple(change.tensor.shape) if isinstance(change, Replacement) else embedding.shape
        return {key: NewTensor(self._tie.key, dtype or embedding.dtype, shape)}

    def _new_biases(self, dtype: torch.dtype | None) -> dict[str, NewTensor]:
        """Each by the key of its layer's weight, behind which it is put."""
        biases = {}
        for name, bias in self._plan.new_biases.items():
            origin = self._sources.base_map.origins.get(f"{name.removesuffix('bias')}weight")
            if origin is None or origin.converter is not None:
                raise ArgumentError(
                    f"the adapter brings '{name}', and the base's checkpoint does not store that layer by itself",
                    hint="use the adapter unmerged: generate, chat and eval take it",
                )
            [key] = origin.keys
            of_weight = self._sources.base.tensors[key].dtype
            biases[key] = NewTensor(self._sources.base_map.key_of(name), dtype or of_weight, tuple(bias.shape))
        return biases

    def _in_rows(self, origin: Origin) -> Task | None:
        """The work where the parameter can be cut into rows; None where it cannot."""
        name = origin.parameters[0]
        change, precision = self._plan.changes.get(name), self._plan.precisions.get(name)
        slabs, value_slabs = self._sources.base_map.slabs(name), self._sources.values_map.slabs(name)
        if len(origin.parameters) != 1 or slabs is None or value_slabs is None:
            return None
        starts = [slab.start for slab in slabs]
        if starts != [slab.start for slab in value_slabs] or (change is not None and change.rows_at_once == 0):
            return None
        if precision is not None:
            step = precision.row_step(self._sources.base.tensors[slabs[0].key].num_columns)
            at_once = change.rows_at_once or 0 if change is not None else 0
            if precision.is_turned or any(start % step for start in (*starts, at_once)):
                return None
        return _Rows(self._sources.values, value_slabs, self.layout, slabs, change, precision).write

    def _write_whole(self, origin: Origin) -> int:
        """Change parameters that cannot be cut into rows."""
        values_map = self._sources.values_map
        values: dict[str, torch.Tensor] = {}
        for name in origin.parameters:
            if name not in values:
                values |= values_map.read(values_map.origins[name])
        changed = {name: self._changed(name, values[name]) for name in origin.parameters}
        for key, tensor in self._sources.base_map.revert(origin, changed).items():
            self.layout.write(key, tensor)
        return sum(self.layout.tensors[key].num_bytes for key in origin.keys)

    def _changed(self, name: str, value: torch.Tensor) -> torch.Tensor:
        change, precision = self._plan.changes.get(name), self._plan.precisions.get(name)
        if isinstance(change, Replacement):
            return change.tensor
        rows = value.reshape(-1, value.shape[-1])
        if precision is not None:
            turned = rows.T if precision.is_turned else rows
            if precision.needs_first_pass:
                precision.begin([turned])
            stored = precision.apply(turned, 0)
            rows = stored.T if precision.is_turned else stored
        rows = rows.float()
        return (rows if change is None else change.apply(rows, 0)).reshape(value.shape)

    def _write_new(self, key: str, tensor: torch.Tensor) -> int:
        self.layout.write(key, tensor)
        return self.layout.tensors[key].num_bytes

    def _convert(self, tensor: StoredTensor) -> int:
        """Write a tensor that does not change in another type."""
        for start, stop in _chunks(tensor.num_rows, max(1, CHUNK_NUMBERS // max(1, tensor.num_columns))):
            rows = self._sources.base.read_rows(tensor.key, start, stop, self.layout.scratch)
            self.layout.write(tensor.key, rows, start * tensor.num_columns)
        return self.layout.tensors[tensor.key].num_bytes


@dataclass(frozen=True)
class _Rows:
    """A parameter whose tensors are rows of it: read, changed and written in chunks."""

    values: Checkpoint
    value_slabs: list[Slab]
    layout: MergedLayout
    slabs: list[Slab]
    change: Change | None
    precision: StoredPrecision | None

    def write(self) -> int:
        """Write all its tensors; returns the bytes."""
        if self.precision is not None and self.precision.needs_first_pass:
            self.precision.begin(rows for _, _, rows in self._chunks())
        for index, start, rows in self._chunks():
            slab = self.slabs[index]
            if self.precision is not None:
                rows = self.precision.apply(rows, slab.start + start)
            if self.change is not None:
                numbers = self.layout.scratch.take("numbers", rows.shape, torch.float32).copy_(rows)
                rows = self.change.apply(numbers, slab.start + start)
            self.layout.write(slab.key, rows, start * rows.shape[1])
        return sum(self.layout.tensors[slab.key].num_bytes for slab in self.slabs)

    def _chunks(self) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Index of the slab, first row in it, and the rows."""
        for index, slab in enumerate(self.value_slabs):
            tensor = self.values.tensors[slab.key]
            step = max(1, CHUNK_NUMBERS // tensor.num_columns)
            if self.precision is not None:
                whole = self.precision.row_step(tensor.num_columns)
                step = max(whole, step // whole * whole)
            at_once = self.change.rows_at_once if self.change is not None else None
            for start, stop in _chunks(tensor.num_rows, step, at_once, slab.start):
                yield index, start, self.values.read_rows(slab.key, start, stop, self.layout.scratch)


def _chunks(num_rows: int, step: int, at_once: int | None = None, offset: int = 0) -> Iterator[tuple[int, int]]:
    """Starts and ends of chunks of at most `step` rows, none of which crosses a multiple of `at_once` less `offset`.

    >>> list(_chunks(10, 4)), list(_chunks(10, 4, 5)), list(_chunks(4, 4, 5, 3))
    ([(0, 4), (4, 8), (8, 10)], [(0, 4), (4, 5), (5, 9), (9, 10)], [(0, 2), (2, 4)])
    """
    start = 0
    while start < num_rows:
        stop = min(start + step, num_rows)
        if at_once:
            stop = min(stop, start + at_once - (start + offset) % at_once)
        yield start, stop
        start = stop
