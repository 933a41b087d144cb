"""The garbage collector stays out of imports, and what they leave is set aside where a process is for one command."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_cli.garbage import collector_off
from qlora_cli.progress import loading_libraries

ROOT = Path(__file__).resolve().parents[1]

IMPORTING = """
import gc, sys, weakref
from contextlib import suppress

from qlora_cli.__main__ import main
from qlora_cli.progress import loading_libraries

class Link:
    pass

{first}
ring = Link()
ring.itself = ring
its_end = weakref.ref(ring)
with loading_libraries():
    import colorsys
set_aside = gc.get_freeze_count()
with loading_libraries():
    later = [[] for _ in range(1000)]
is_set_aside_once = gc.get_freeze_count() == set_aside
del ring
gc.collect()
print(gc.isenabled(), set_aside > 0, is_set_aside_once, its_end() is None)
"""
"""A ring of references that was there before the imports; only a collection frees it."""

COMMAND = """
sys.argv = ["qlora", "--version"]
with suppress(SystemExit):
    main()
"""


@pytest.fixture
def collector_on():
    was_on = gc.isenabled()
    gc.enable()
    yield
    if not was_on:
        gc.disable()


@pytest.mark.parametrize("block", [collector_off, loading_libraries])
def test_the_collector_is_off_in_the_block_and_on_again_after_a_fault(block, collector_on):
    with pytest.raises(KeyboardInterrupt), block():
        assert not gc.isenabled()
        with block():
            assert not gc.isenabled()
        assert not gc.isenabled()  # the inner block found it off
        raise KeyboardInterrupt
    assert gc.isenabled()


def printed_by(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.splitlines()[-1].split()


@pytest.mark.slow
def test_a_command_sets_its_imports_aside_once():
    assert printed_by(IMPORTING.format(first=COMMAND)) == ["True", "True", "True", "False"]


@pytest.mark.slow
def test_in_a_process_of_the_users_own_nothing_is_set_aside():
    assert printed_by(IMPORTING.format(first="")) == ["True", "False", "True", "True"]
