"""The rows of all processes together are those of one process, each once an epoch."""

from __future__ import annotations

import pytest
from accelerate.data_loader import SeedableRandomSampler

from qlora_cli.train.step.sampler import PADDING_ROW, PaddedDataset, ShardedSampler, share


@pytest.mark.parametrize("num_rows", [1, 7, 8, 9, 40, 41])
@pytest.mark.parametrize(("batch_size", "world_size"), [(1, 2), (2, 2), (3, 4)])
def test_every_row_is_in_one_share_once_and_all_shares_are_equally_long(num_rows, batch_size, world_size):
    shares = [share(range(num_rows), batch_size, rank, world_size) for rank in range(world_size)]
    assert len({len(rows) for rows in shares}) == 1
    assert len(shares[0]) % batch_size == 0
    assert sorted(row for rows in shares for row in rows if row != PADDING_ROW) == list(range(num_rows))


@pytest.mark.parametrize("num_rows", [8, 11])
def test_each_step_takes_the_rows_that_one_process_would_take_in_the_same_epoch(num_rows):
    one = SeedableRandomSampler(range(num_rows), data_seed=5)
    two = [ShardedSampler(num_rows, 2, rank, 2, seed=5) for rank in (0, 1)]
    for epoch in (0, 3):
        for sampler in (one, *two):
            sampler.set_epoch(epoch)
        order, shares = list(one), [list(sampler) for sampler in two]
        assert [len(rows) for rows in shares] == [len(sampler) for sampler in two]
        for step in range(len(shares[0]) // 2):
            together = [row for rows in shares for row in rows[2 * step : 2 * step + 2] if row != PADDING_ROW]
            assert together == order[4 * step : 4 * step + 4]


def test_the_row_that_fills_up_a_batch_has_no_label():
    rows = PaddedDataset([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "seq_lengths": [3]}])
    assert len(rows) == 1
    assert rows[0]["labels"] == [-100, 2, 3]
    assert rows[PADDING_ROW]["labels"] == [-100, -100, -100]
    assert rows[PADDING_ROW]["input_ids"] == [1, 2, 3]
