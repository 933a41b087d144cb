"""docs/memory.md: its tables are what its script computes, and its commands print its figures.

The tables by arithmetic are all made again; of those that take a trace for each row, one row and one command are.
"""

from __future__ import annotations

import doctest
import importlib
import re
import sys
from pathlib import Path

import pytest

from qlora_cli.plan.facts import model_facts
from qlora_cli.plan.shape import PlanRequest
from qlora_cli.recipe.schema import Recipe

pytestmark = pytest.mark.slow

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "memory.md").read_text("utf-8")


@pytest.fixture(scope="module")
def scripts():
    """The modules `write_memory` and `memory_bases`."""
    sys.path.insert(0, str(DOCS))
    try:
        yield importlib.import_module("write_memory"), importlib.import_module("memory_bases")
    finally:
        sys.path.remove(str(DOCS))


def test_worked_examples_are_true(scripts):
    for module in scripts:
        result = doctest.testmod(module)
        assert result.attempted > 0
        assert result.failed == 0


def test_tables_by_arithmetic_are_those_of_the_script(scripts):
    write_memory, _ = scripts
    again = write_memory.rewritten(PAGE, *write_memory.BY_ARITHMETIC)
    assert again == PAGE, "run `python docs/write_memory.py`"


def test_the_page_has_every_table(scripts):
    write_memory, _ = scripts
    named = {maker.__name__ for maker in (*write_memory.BY_ARITHMETIC, *write_memory.BY_TRACING)}
    assert set(re.findall(r"<!-- (\w+) -->", PAGE)) == named


def test_a_traced_row_is_what_a_trace_gives(scripts):
    write_memory, bases = scripts
    row = ("QLoRA", "1 x 512", *write_memory.parts(bases.traced("llama-2-7b", "data.max_length=512")))
    assert f"| {' | '.join(row)} | `--set data.max_length=512` |\n" in PAGE, "run `python docs/write_memory.py`"


def test_parameters_by_arithmetic_are_those_of_the_model(scripts):
    _, bases = scripts
    for name in ("qwen2.5-0.5b", "llama-3.2-1b"):
        config = bases.BASES[name]()
        facts = model_facts(PlanRequest(Recipe.model_validate({"name": name, **bases.RECIPE}), config))
        assert bases.counts(config) == (facts.num_quantized, facts.num_base - facts.num_quantized)


def test_a_page_without_a_table_is_refused(scripts):
    write_memory, _ = scripts
    with pytest.raises(ValueError, match="no table named true_bits"):
        write_memory.rewritten("no tables", write_memory.true_bits)


def test_its_first_command_plans_without_the_hub(scripts, tmp_path, monkeypatch, capsys):
    from qlora_cli.cli import app

    _, bases = scripts
    monkeypatch.setattr(bases, "BASES", {"llama-3.2-1b": bases.BASES["llama-3.2-1b"]})
    bases.write_bases(tmp_path)
    assert sorted(path.name for path in (tmp_path / "llama-3.2-1b").iterdir()) == ["config.json", "recipe.yaml"]
    monkeypatch.setattr(sys, "argv", ["qlora", "plan", str(tmp_path / "llama-3.2-1b" / "recipe.yaml")])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert not ended.value.code
    assert "of 1,247," in capsys.readouterr().out
