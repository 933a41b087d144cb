"""The doctor tries things for real, and tells what fails."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest

from qlora_cli.plan import doctor
from qlora_cli.plan.doctor import Finding, examine
from qlora_cli.run.manifest import LIBRARIES


def found(what: str) -> Finding:
    [finding] = [finding for finding in examine() if finding.what == what]
    return finding


def test_a_healthy_machine_is_fine_throughout():
    assert [finding for finding in examine() if not finding.is_fine] == []


def test_versions_name_every_library_that_shapes_a_run():
    assert all(f"{library} " in found("versions").found for library in LIBRARIES)


def test_the_dtype_is_the_one_that_auto_gives_here():
    assert found("model.dtype: auto means").found == "float32"


def test_nf4_that_returns_garbage_is_found_out(monkeypatch):
    right = bnb.functional.dequantize_4bit
    monkeypatch.setattr(bnb.functional, "dequantize_4bit", lambda *given, **named: -right(*given, **named))
    finding = found("NF4 round trip")
    assert not finding.is_fine
    assert finding.cells()[0] == "FAIL"


def test_an_optimizer_that_does_not_move_anything_is_found_out(monkeypatch):
    right = bnb.optim.PagedAdamW8bit
    monkeypatch.setattr(bnb.optim, "PagedAdamW8bit", lambda parameters, lr: right(parameters, lr=0.0))
    assert not found("step through NF4, 8-bit AdamW").is_fine


@pytest.mark.parametrize(("value", "told"), [("1", "offline"), ("0", "online")])
def test_whether_the_hub_is_asked_is_told(monkeypatch, value, told):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert found("Hub").found.startswith(told)


def test_missing_extras_come_with_the_command_that_installs_them(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "rouge_score" else object())
    finding = found("optional packages")
    assert finding.found == "some are missing: pip install 'qlora[eval]'"
    assert finding.is_fine


def test_with_all_extras_nothing_is_asked_for(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: object())
    assert found("optional packages").found == "all installed"


def test_a_finding_as_json():
    assert Finding("a", "b", is_fine=False).as_dict() == {"what": "a", "found": "b", "is_fine": False}
