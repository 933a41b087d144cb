"""The worked examples in the docstrings of the data room are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import qlora_cli.data

MODULES = [module.name for module in pkgutil.iter_modules(qlora_cli.data.__path__)]
WITH_EXAMPLES = {"collator", "example", "formats", "mask", "messages", "packing", "sources", "token_row"}


@pytest.mark.parametrize("name", MODULES)
def test_worked_examples_are_true(name):
    result = doctest.testmod(importlib.import_module(f"qlora_cli.data.{name}"))
    assert result.failed == 0
    assert result.attempted > 0 or name not in WITH_EXAMPLES
