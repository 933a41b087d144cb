"""The functions at which the harness kills and sends signals are there; some are met in the long run only."""

from __future__ import annotations

from pkgutil import resolve_name

import pytest

from tests.reliability import test_killed_ranks
from tests.reliability.harness.signalled_runs import PHASES

POINTS = {
    *(where for where, _ in (test_killed_ranks.POINTS | test_killed_ranks.POINTS_OF_FIRST).values()),
    *(where for phase in PHASES.values() for where, _ in phase.points),
}


@pytest.mark.parametrize("where", sorted(POINTS - {"start"}))
def test_a_point_names_a_function(where):
    assert callable(resolve_name(where))
