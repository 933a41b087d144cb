"""PyTorch's caching allocator, run on a trace: bytes allocated with rounding, bytes reserved with fragmentation.

The rules are those of c10/cuda/CUDACachingAllocator.cpp as it runs by default. Sizes are rounded up to 512 bytes. A
request takes the smallest free block that fits, else a new segment: 2 MiB for requests up to 1 MiB, 20 MiB for those
under 10 MiB, else the request rounded up to 2 MiB. What a request leaves of a block is split off, of a large block only
when it is more than 1 MiB. Freed blocks join their free neighbours; segments stay reserved.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field

from qlora_cli.constants import MIB
from qlora_cli.plan.trace.live_memory import MemoryKind
from qlora_cli.plan.trace.timeline import MemoryTrace

ROUNDING = 512
SMALL = 1 * MIB
SMALL_SEGMENT = 2 * MIB
LARGE = 10 * MIB
LARGE_SEGMENT = 20 * MIB
LARGE_ROUNDING = 2 * MIB


@dataclass(eq=False, slots=True)
class AllocatorBlock:
    """A piece of a segment."""

    size: int
    address: int
    is_small: bool
    is_free: bool = False
    before: AllocatorBlock | None = None
    after: AllocatorBlock | None = None


@dataclass
class CachingAllocator:
    """The state of one device's memory.

    >>> allocator = CachingAllocator()
    >>> first = allocator.allocate(700)
    >>> allocator.allocated, allocator.reserved == 2 * MIB
    (1024, True)
    """

    allocated: int = 0
    reserved: int = 0
    peak_allocated: int = 0
    peak_reserved: int = 0
    _free: dict[bool, list[tuple[int, int, AllocatorBlock]]] = field(default_factory=lambda: {True: [], False: []})

    def allocate(self, num_bytes: int) -> AllocatorBlock:
        """A block of at least this many bytes."""
        size = max(ROUNDING, -(-num_bytes // ROUNDING) * ROUNDING)
        is_small = size <= SMALL
        block = self._take(size, is_small) or self._new_segment(size, is_small)
        left = block.size - size
        if left >= ROUNDING if is_small else left > SMALL:
            rest = AllocatorBlock(left, block.address + size, is_small, before=block, after=block.after)
            if rest.after is not None:
                rest.after.before = rest
            block.size, block.after = size, rest
            self._put(rest)
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return block

    def free(self, block: AllocatorBlock) -> None:
        """Give a block back."""
        self.allocated -= block.size
        for other in (block.before, block.after):
            if other is not None and other.is_free:
                self._remove(other)
        if block.before is not None and block.before.is_free:
            block = _joined(block.before, block)
        if block.after is not None and block.after.is_free:
            block = _joined(block, block.after)
        self._put(block)

    def _take(self, size: int, is_small: bool) -> AllocatorBlock | None:
        pool = self._free[is_small]
        index = bisect_left(pool, (size, -1))
        if index == len(pool):
            return None
        block = pool.pop(index)[2]
        block.is_free = False
        return block

    def _new_segment(self, size: int, is_small: bool) -> AllocatorBlock:
        if is_small:
            segment = SMALL_SEGMENT
        elif size < LARGE:
            segment = LARGE_SEGMENT
        else:
            segment = -(-size // LARGE_ROUNDING) * LARGE_ROUNDING
        # Addresses of segments follow one another; blocks of two segments are never joined.
        block = AllocatorBlock(segment, self.reserved, is_small)
        self.reserved += segment
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return block

    def _put(self, block: AllocatorBlock) -> None:
        block.is_free = True
        insort(self._free[block.is_small], (block.size, block.address, block))

    def _remove(self, block: AllocatorBlock) -> None:
        pool = self._free[block.is_small]
        pool.pop(bisect_left(pool, (block.size, block.address)))


def _joined(first: AllocatorBlock, second: AllocatorBlock) -> AllocatorBlock:
    first.size += second.size
    first.after = second.after
    if first.after is not None:
        first.after.before = first
    return first


NUM_STEPS = 2
"""Steps that are replayed: the second finds what the first has cached, as all later ones do."""


def allocate_trace(trace: MemoryTrace, *, beforehand: int = 0) -> CachingAllocator:
    """The allocator after it has served the step, and served it again.

    Args:
        trace: the step; its paged state is not the allocator's.
        beforehand: bytes that are allocated for good after the model is loaded, such as cuBLAS's workspaces.
    """
    allocator = CachingAllocator()
    lives = [life for life in trace.lives if life.kind is not MemoryKind.PAGED_OPTIMIZER]
    for life in lives:
        if not life.allocated_at:
            allocator.allocate(life.num_bytes)
    if beforehand:
        allocator.allocate(beforehand)
    events = [
        event for event in trace.events() if event[1].allocated_at and event[1].kind is not MemoryKind.PAGED_OPTIMIZER
    ]
    for _ in range(NUM_STEPS):
        blocks: dict[int, AllocatorBlock] = {}
        for _, life, sign in events:
            if sign > 0:
                blocks[id(life)] = allocator.allocate(life.num_bytes)
            else:
                allocator.free(blocks.pop(id(life)))
        for block in blocks.values():
            allocator.free(block)
    return allocator
