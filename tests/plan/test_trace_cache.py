"""Each step is traced once on a machine, and traced again where its file is damaged."""

from __future__ import annotations

import shutil

import pytest

from qlora_cli.plan import trace_cache
from qlora_cli.plan.budget import device_memory
from qlora_cli.plan.trace.trace_step import trace_step
from qlora_cli.plan.trace_cache import Tracer, code_fingerprint, plans_root
from qlora_cli.recipe.shipped import PACKAGE
from tests.plan.bases import AMPERE, CPU, config_of, request_for

LLAMA = request_for(config_of("llama"), AMPERE)


@pytest.fixture(scope="module")
def trace_of_llama():
    return trace_step(LLAMA)


@pytest.fixture
def traced(monkeypatch, empty_cache, trace_of_llama):
    """The requests that were traced; `LLAMA` itself, whose trace is at hand, without the work."""
    requests = []

    def trace(request):
        requests.append(request)
        return trace_of_llama if request is LLAMA else trace_step(request)

    monkeypatch.setattr(trace_cache, "trace_step", trace)
    return requests


def test_a_tracer_traces_each_step_once(traced):
    one = Tracer()
    request = LLAMA
    more = request.changed({"training.per_device_train_batch_size": 16})
    assert one.device_bytes(more) > one.device_bytes(request)
    again = more.changed({"training.per_device_train_batch_size": 2})
    assert one.device_bytes(again) == one.device_bytes(request)
    assert len(traced) == 2


def test_another_tracer_finds_what_the_first_one_traced(traced, trace_of_llama):
    request = request_for(config_of("llama"), AMPERE)
    expected = device_memory(request, trace_of_llama)
    assert [Tracer().needs(request) for _ in range(3)] == [expected] * 3
    assert len(traced) == 1


@pytest.mark.parametrize(
    "other",
    [
        request_for(config_of("llama"), CPU),
        request_for(config_of("llama", 3), AMPERE),
        request_for(config_of("llama"), AMPERE, data__max_length=65),
        request_for(config_of("llama"), AMPERE, lora__r=8),
        request_for(config_of("llama"), AMPERE, quantized=False),
        request_for(config_of("llama"), AMPERE, training__gradient_checkpointing=False),
    ],
    ids=["device", "layers", "length", "rank", "quantization", "checkpointing"],
)
def test_what_differs_is_not_mistaken_for_it(traced, other):
    first = Tracer().needs(LLAMA)
    assert Tracer().needs(other) != first
    assert len(traced) == 2


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"allocated_bytes": 1, "reserved_bytes": 1, "overheads": 3}'])
def test_a_damaged_file_is_traced_anew(traced, content):
    expected = Tracer().needs(LLAMA)
    [path] = plans_root().iterdir()
    path.write_text(content)
    assert Tracer().needs(LLAMA) == expected
    assert len(traced) == 2


def test_where_nothing_can_be_kept_the_step_is_traced_all_the_same(traced, trace_of_llama):
    plans_root().write_text("a file in place of the folder")
    request = request_for(config_of("llama"), AMPERE)
    assert Tracer().needs(request) == device_memory(request, trace_of_llama)


RUN_BY_A_TRACE = ["plan/budget.py", "model/adapter.py", "recipe/schema.py", "compat.py"]


@pytest.mark.parametrize("name", [*RUN_BY_A_TRACE, "plan/inner/new.py"])
def test_a_change_of_any_code_that_a_trace_runs_is_not_answered_from_before(tmp_path, name):
    package = shutil.copytree(PACKAGE, tmp_path / "qlora_cli", ignore=shutil.ignore_patterns("__pycache__"))
    before = code_fingerprint(package)
    (package / name).parent.mkdir(exist_ok=True)
    with (package / name).open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    code_fingerprint.cache_clear()
    assert code_fingerprint(package) != before


def test_a_key_holds_the_code(monkeypatch):
    request = request_for(config_of("llama"), AMPERE)
    before = trace_cache._key(request)
    monkeypatch.setattr(trace_cache, "code_fingerprint", lambda: "other code")
    assert trace_cache._key(request) != before
