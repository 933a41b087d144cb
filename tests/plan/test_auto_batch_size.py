"""`auto` is the number of rows that fits, found by tracing, shared out evenly over as few passes as it allows."""

from __future__ import annotations

import pytest

from qlora_cli.plan.auto_batch_size import even_split, with_auto_batch_size
from qlora_cli.plan.trace_cache import Tracer
from tests.plan.bases import AMPERE, config_of, request_for

ROWS = 12


@pytest.fixture(scope="module")
def automatic():
    return request_for(
        config_of("llama"),
        AMPERE,
        training__per_device_train_batch_size="auto",
        training__gradient_accumulation_steps=ROWS,
        data__max_length=256,
    )


def of_rows(request, rows):
    """The same step in passes of this many rows."""
    return request.changed(
        {"training.per_device_train_batch_size": rows, "training.gradient_accumulation_steps": -(-ROWS // rows)}
    )


@pytest.mark.parametrize(("rows", "chosen"), [(12, 12), (11, 6), (7, 6), (5, 4), (1, 1)])
def test_the_most_rows_that_fit_are_taken_evenly(automatic, rows, chosen):
    memory = Tracer().device_bytes(of_rows(automatic, rows))
    found = with_auto_batch_size(automatic, memory)
    assert found.batch_size == chosen
    assert Tracer().device_bytes(found) <= memory
    assert found.recipe.training.rows_per_step == ROWS


def test_where_not_even_a_row_fits_a_single_row_is_planned(automatic):
    assert with_auto_batch_size(automatic, 1000).batch_size == 1


def test_where_no_memory_is_known_all_rows_are_taken_at_once(automatic):
    found = with_auto_batch_size(automatic, None).recipe.training
    assert (found.rows_at_once, found.num_passes) == (ROWS, 1)


def test_a_number_stays_as_it_is():
    request = request_for(config_of("llama"), AMPERE, training__per_device_train_batch_size=3)
    assert with_auto_batch_size(request, 1000) is request


@pytest.mark.parametrize("num_rows", range(1, 40))
def test_passes_are_even_and_as_few_as_the_largest_allows(num_rows):
    for most in range(1, num_rows + 1):
        rows = even_split(num_rows, most)
        passes = -(-num_rows // rows)
        assert rows <= most
        assert passes == -(-num_rows // most)
        assert all(-(-num_rows // fewer) > passes for fewer in range(1, rows))
