"""The caching allocator's rules, by hand and at random."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_cli.plan.trace.allocator import MIB, CachingAllocator, allocate_trace
from qlora_cli.plan.trace.live_memory import MemoryKind, Phase, Stage
from qlora_cli.plan.trace.timeline import Allocation, MemoryTrace


def test_small_requests_share_segments_of_two_mib():
    allocator = CachingAllocator()
    for _ in range(5):
        allocator.allocate(MIB // 2 - 100)
    assert (allocator.allocated, allocator.reserved) == (5 * MIB // 2, 4 * MIB)


def test_medium_requests_split_segments_of_twenty_mib():
    allocator = CachingAllocator()
    for _ in range(4):
        allocator.allocate(5 * MIB)
    assert (allocator.allocated, allocator.reserved) == (20 * MIB, 20 * MIB)


def test_large_requests_are_rounded_up_to_two_mib():
    allocator = CachingAllocator()
    allocator.allocate(15 * MIB)
    assert allocator.reserved == 16 * MIB
    assert allocator.allocated == 16 * MIB  # less than 1 MiB would be left, so nothing is split off


def test_a_freed_block_is_used_again_and_the_smallest_that_fits_first():
    allocator = CachingAllocator()
    wide, narrow = allocator.allocate(40 * MIB), allocator.allocate(20 * MIB)
    allocator.free(wide)
    allocator.free(narrow)
    again = allocator.allocate(18 * MIB)
    assert again.address == 40 * MIB
    assert allocator.reserved == 60 * MIB


def test_neighbours_are_joined():
    allocator = CachingAllocator()
    blocks = [allocator.allocate(5 * MIB) for _ in range(4)]
    for block in (blocks[0], blocks[2], blocks[1], blocks[3]):
        allocator.free(block)
    allocator.allocate(20 * MIB)
    assert allocator.reserved == 20 * MIB


def test_holes_that_are_too_small_are_fragmentation():
    allocator = CachingAllocator()
    blocks = [allocator.allocate(16 * MIB) for _ in range(8)]
    for block in blocks[::2]:
        allocator.free(block)
    allocator.allocate(32 * MIB)
    assert allocator.reserved == (8 * 16 + 32) * MIB
    assert allocator.allocated == (4 * 16 + 32) * MIB


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60 * MIB), st.booleans()), max_size=60))
def test_the_books_always_balance(requests):
    allocator = CachingAllocator()
    held = []
    for size, frees in requests:
        held.append((allocator.allocate(size), size))
        if frees:
            allocator.free(held.pop(len(held) // 2)[0])
        assert sum(size for _, size in held) <= allocator.allocated <= allocator.reserved
        spans = sorted((block.address, block.address + block.size) for block, _ in held)
        assert all(stop <= start for (_, stop), (start, _) in pairwise(spans))
    for block, _ in held:
        allocator.free(block)
    assert allocator.allocated == 0
    assert sum(size for pool in allocator._free.values() for size, _, _ in pool) == allocator.reserved


def test_a_trace_is_served_until_nothing_new_is_reserved():
    lives = (
        Allocation(10 * MIB, MemoryKind.BASE_QUANTIZED, 0, 9),
        Allocation(99 * MIB, MemoryKind.PAGED_OPTIMIZER, 0, 9),
        Allocation(30 * MIB, MemoryKind.TEMPORARY, 1, 3),
        Allocation(20 * MIB, MemoryKind.GRADIENTS, 2, 9),
    )
    trace = MemoryTrace(lives, (Phase(Stage.FORWARD, 0, 0),), 5)
    allocator = allocate_trace(trace, beforehand=4 * MIB)
    assert allocator.peak_allocated == (10 + 4 + 30 + 20) * MIB
    assert allocator.peak_reserved >= allocator.peak_allocated
