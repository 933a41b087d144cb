"""The doctor calls nothing `ok` that it has not tried, and says what fails."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import os
import sys
import types
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from qlora_cli.plan.machine import doctor
from qlora_cli.plan.machine.doctor import examine, try_compiler, try_disk, try_extras, try_libraries
from qlora_cli.plan.machine.finding import DoctorFinding
from qlora_cli.run.manifest import DISTRIBUTION, LIBRARIES


def found(what: str) -> DoctorFinding:
    [finding] = [finding for finding in examine() if finding.what == what]
    return finding


def marks(findings) -> dict[str, str]:
    return {finding.what: finding.cells()[0] for finding in findings}


def test_a_healthy_machine_is_fine_throughout():
    assert [finding for finding in examine() if not finding.is_fine] == []


def test_the_libraries_are_those_that_shape_a_run():
    *faults, summary = try_libraries()
    assert faults == []
    assert all(f"{library} " in summary.found for library in LIBRARIES)


def test_a_library_that_cannot_be_imported_is_found_out_and_nothing_is_computed(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)  # as Python marks what must not be imported
    findings = examine()
    assert marks(findings)["trl"] == "FAIL"
    assert (marks(findings)["versions"], marks(findings)["device"]) == ("-", "-")


def test_a_library_out_of_the_declared_range_is_found_out(monkeypatch):
    right = importlib.metadata.version
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "0.1" if name == "peft" else right(name))
    [fault] = [finding for finding in try_libraries() if not finding.is_fine]
    assert fault.what == "peft"
    assert fault.found.startswith("0.1 is not in the range ")
    assert "pip install 'peft" in fault.found


def test_a_device_that_computes_wrongly_is_found_out(monkeypatch):
    right = torch.Tensor.__matmul__
    wrong = {torch.float32: 1, torch.float64: 0}
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda left, other: right(left, other) + wrong[left.dtype])
    assert not found("device").is_fine


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


@pytest.mark.parametrize(("is_needed", "mark"), [(True, "FAIL"), (False, "-")])
def test_a_compiler_that_does_not_compile_is_not_ok(tmp_path, monkeypatch, is_needed, mark):
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'no Python.h' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    finding = try_compiler(is_needed=is_needed)
    assert finding.cells()[0] == mark
    assert "no Python.h" in finding.found


@pytest.mark.parametrize(("is_needed", "mark"), [(True, "FAIL"), (False, "-")])
def test_without_a_compiler_nothing_is_ok(tmp_path, monkeypatch, is_needed, mark):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert try_compiler(is_needed=is_needed).cells()[0] == mark


def test_the_disk_is_written_to_and_left_as_it_was(tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    assert try_disk(tmp_path).cells()[0] == "ok"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_that_cannot_be_written_to_is_found_out():
    assert try_disk(Path("/proc/self")).cells()[0] == "FAIL"  # not even by root


def test_a_package_that_is_not_installed_is_not_ok_and_comes_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(
        "qlora_cli.plan.machine.extras.find_spec", lambda name: None if name == "rouge_score" else object()
    )
    finding = {finding.what: finding for finding in try_extras()}["rouge-score"]
    assert finding.cells()[0] == "-"
    assert finding.found == "not installed; for the metric rouge_l: pip install rouge-score"


def test_a_package_that_is_there_and_broken_is_found_out(tmp_path, monkeypatch):
    (tmp_path / "trackio.py").write_text("raise RuntimeError('built for\\nanother Python')\n")
    monkeypatch.syspath_prepend(tmp_path)
    finding = {finding.what: finding for finding in try_extras()}["trackio"]
    assert finding.cells()[0] == "FAIL"
    assert finding.found == "cannot be imported: built for another Python"


def test_packages_that_can_be_imported_are_ok(monkeypatch):
    for name in ("wandb", "mlflow", "trackio"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, loader=None)
        monkeypatch.setitem(sys.modules, name, module)
    assert marks(try_extras())["optional packages"] == "ok"


def test_a_finding_as_json():
    expected = {"what": "a", "found": "b", "is_fine": False, "is_tried": True}
    assert DoctorFinding("a", "b", is_fine=False).as_dict() == expected


def test_each_library_is_imported_by_a_module_that_it_brings():
    """Such as nvidia-ml-py, which brings pynvml: a package's name is not always its module's."""
    brought = importlib.metadata.packages_distributions()
    for text in importlib.metadata.requires(DISTRIBUTION):
        requirement = Requirement(text)
        if requirement.marker is None:
            module = doctor.MODULES.get(requirement.name, requirement.name)
            assert canonicalize_name(requirement.name) in map(canonicalize_name, brought.get(module, ())), module
