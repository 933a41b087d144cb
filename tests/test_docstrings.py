"""The worked examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib

import pytest

from tests.sources import ROOT, python_files

WITH_EXAMPLES = [path for path in python_files("qlora_cli") if ">>> " in path.read_text("utf-8")]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_worked_examples_are_true(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def test_there_are_examples_where_an_index_or_a_mask_is_involved():
    names = {path.stem for path in WITH_EXAMPLES}
    assert {"mask", "packing", "collator", "token_row", "answers", "state_io"} <= names
