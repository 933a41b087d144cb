"""The largest value that fits was traced, and so was the next one, which does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_cli.plan.fit import UNITS, largest_fit, search
from tests.plan.bases import AMPERE, config_of, request_for


@given(st.integers(1, 5000), st.integers(0, 3000), st.floats(0, 60), st.floats(0, 0.02), st.integers(0, 400_000))
def test_the_search_finds_what_trying_all_would(most, base, slope, bend, limit):
    asked = []

    def needed(count):
        asked.append(count)
        return base + int(slope * count + bend * count * count)

    found = search(needed, limit, most)
    fitting = [count for count in range(1, most + 1) if base + int(slope * count + bend * count * count) <= limit]
    assert found == (max(fitting) if fitting else None)
    assert len(asked) == len(set(asked)) <= 25


def test_a_line_takes_five_traces():
    asked = []
    assert search(lambda count: asked.append(count) or 1000 + 37 * count, 5000, 1024) == 108
    assert len(asked) <= 5


@pytest.mark.every(3)
@pytest.mark.parametrize("key", UNITS)
def test_the_next_larger_value_does_not_fit(key):
    request = request_for(config_of("llama"), AMPERE, lora__r=8)
    limit = {"training.per_device_train_batch_size": 700, "data.max_length": 640, "lora.r": 620}[key] * 1_000_000
    found = largest_fit(request, key, limit)
    assert found.num_bytes == found.tried[found.value] <= limit
    larger = found.value + UNITS[key]
    assert larger not in found.tried or found.tried[larger] > limit
    assert found.override == f"--set {key}={found.value}"


def test_where_nothing_fits_nothing_is_set():
    found = largest_fit(request_for(config_of("llama"), AMPERE), "training.per_device_train_batch_size", 1000)
    assert found.value is None
    assert found.num_bytes > 1000
    assert found.override == ""


def test_a_length_beyond_the_bases_positions_is_not_tried():
    found = largest_fit(request_for(config_of("llama"), AMPERE), "data.max_length", 10**12)
    assert found.value == 512
    assert max(found.tried) == 512


def test_a_key_that_is_no_number_of_the_step_is_refused():
    with pytest.raises(ValueError, match=r"'training\.seed' cannot be searched"):
        largest_fit(request_for(config_of("llama")), "training.seed", 1)
