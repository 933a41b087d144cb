"""Trials of this machine: everything that is called `ok` was tried just before."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path

from packaging.requirements import Requirement

from qlora_cli import console, upstream
from qlora_cli.constants import GIB
from qlora_cli.plan.machine.extras import EXTRAS, IMPORT_FAULTS, missing_packages, one_line, try_package
from qlora_cli.plan.machine.finding import DoctorFinding
from qlora_cli.run.manifest import DISTRIBUTION, LIBRARIES

MODULES = {"nvidia-ml-py": "pynvml", "pyyaml": "yaml"}
"""Package -> the module it is imported as, where that is not its name."""

MISSING = "missing"
PROBE_BYTES = 1024 * 1024
COMPILE_SECONDS = 30


def examine() -> list[DoctorFinding]:
    """Import every library, compute on the device in use, compile, write, and ask the Hub.

    Where a library cannot be imported, nothing is computed.
    """
    libraries = list(try_libraries())
    if not all(finding.is_fine for finding in libraries):
        return [*libraries, DoctorFinding("device", "not tested: see above", is_tried=False), try_disk(Path())]

    with console.library_noise_to(None):
        from qlora_cli.model.device import pick_device
        from qlora_cli.plan.machine.hub_trial import try_hub
        from qlora_cli.plan.machine.trials import try_device

        device = pick_device()
        return [
            *libraries,
            *try_names(),
            *try_device(device),
            try_compiler(is_needed=device.type == "cuda"),
            try_disk(Path()),
            *try_extras(),
            try_hub(),
        ]


def try_libraries() -> Iterator[DoctorFinding]:
    """Import all that the package declares to need, and compare the versions with the declared ranges."""
    try:
        required = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    except metadata.PackageNotFoundError:
        text = f"{DISTRIBUTION} itself is not installed: `pip install .` in its repository"
        yield DoctorFinding("versions", text, is_fine=False)
        return
    faults = [
        DoctorFinding(requirement.name, fault, is_fine=False)
        for requirement in required
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if (fault := _fault_of(requirement))
    ]
    yield from faults
    versions = {name: _version(name) for name in (DISTRIBUTION, *LIBRARIES)}
    listed = ", ".join(
        f"{name} {version}" for name, version in {"python": platform.python_version(), **versions}.items()
    )
    yield DoctorFinding("versions", listed, is_tried=not faults)


def try_names() -> Iterator[DoctorFinding]:
    """Look for the names that we need of the libraries, and that they do not promise to keep."""
    gone = [problem for error in upstream.all_gone() for problem in error.problems]
    for problem in gone:
        yield DoctorFinding("names", f"{problem.text}: {problem.hint}", is_fine=False)
    if not gone:
        yield DoctorFinding("names", "what we need of the libraries and they do not promise to keep is all there")


def _fault_of(requirement: Requirement) -> str:
    """The fault of a library; empty where it can be imported and its version is in the range."""
    install = f"pip install '{requirement.name}{requirement.specifier}'"
    if (version := _version(requirement.name)) == MISSING:
        return f"is not installed: {install}"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{version} is not in the range {requirement.specifier}: {install}"
    try:
        import_module(MODULES.get(requirement.name, requirement.name))
    except IMPORT_FAULTS as fault:
        return f"{version} cannot be imported: {one_line(fault)}"
    return ""


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return MISSING


def try_compiler(*, is_needed: bool) -> DoctorFinding:
    """Compile a file against Python's headers, as Triton does at the first step on a GPU for trl's loss kernel."""
    what = "C compiler"
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        found = "none: install gcc and Python's headers" if is_needed else "none; not needed on a CPU"
        return DoctorFinding(what, found, is_fine=not is_needed, is_tried=False)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "trial.c")
        source.write_text("#include <Python.h>\nint trial(void) { return PY_MAJOR_VERSION; }\n", encoding="utf-8")
        include = f"-I{sysconfig.get_path('include')}"
        command = [compiler, "-shared", "-fPIC", include, str(source), "-o", str(Path(folder, "trial.so"))]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS)
        except (OSError, subprocess.SubprocessError) as fault:
            said = getattr(fault, "stderr", None) or str(fault).encode()
            text = f"{compiler} does not compile against Python's headers: {one_line(said.decode(errors='replace'))}"
            return DoctorFinding(what, text, is_fine=not is_needed, is_tried=False)
    return DoctorFinding(what, f"{compiler} compiles against Python's headers")


def try_disk(folder: Path) -> DoctorFinding:
    """Write to the folder where runs are written, and say how much room it has."""
    what = "disk here"
    try:
        with tempfile.TemporaryFile(dir=folder) as file:  # it never has a name, so that nothing can stay behind
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
        usage = shutil.disk_usage(folder)
    except OSError as fault:
        return DoctorFinding(what, f"nothing can be written to {folder.absolute()}: {fault.strerror}", is_fine=False)
    return DoctorFinding(
        what, f"{usage.free / GIB:.0f} GiB of {usage.total / GIB:.0f} GiB are free; a file was written"
    )


def try_extras() -> Iterator[DoctorFinding]:
    """Import each optional package that is installed, and name the others."""
    missing = missing_packages()
    faults = {extra.package: try_package(extra) for extra in EXTRAS if extra not in missing}
    for package, fault in faults.items():
        if fault:
            yield DoctorFinding(package, fault, is_fine=False)
    if works := [package for package, fault in faults.items() if not fault]:
        yield DoctorFinding("optional packages", ", ".join(works))
    for extra in missing:
        yield DoctorFinding(
            extra.package, f"not installed; for {extra.purpose}: pip install {extra.package}", is_tried=False
        )
