"""`qlora env`: virtual environments of engines in the cache folder, absent or complete whatever stops the work."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

from qlora_cli.cache_folder import CACHE_ELSEWHERE
from qlora_cli.deploy.engines.process import last_words, run_logged
from qlora_cli.engine_environment import ENVIRONMENTS, READY_MARK, EngineEnvironment, OwnEnvironment
from qlora_cli.errors import ArgumentError, ResourceError
from qlora_cli.progress import progress
from qlora_cli.run.disk_errors import naming, refuse_full_disk
from qlora_cli.run.files import write_json

BEGUN_MARK = "qlora_environment.begun"
"""File that is written before all others into an environment that `qlora env` makes."""

CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
"""torch without CUDA: 200 MB in place of 5 GB."""

VERSION = (
    "import importlib.metadata as m, sys; import {module} as engine; "
    "print(getattr(engine, '__version__', None) or m.version(sys.argv[1]))"
)


@dataclass(frozen=True)
class Installed:
    """What is there of an engine."""

    name: str
    purpose: str
    version: str | None
    """None where it is not installed, or cannot be imported."""

    python: str | None
    variable: str
    """Variable that names another Python."""

    is_elsewhere: bool
    """The variable is set."""

    def cells(self) -> tuple[str, ...]:
        """For a table."""
        place = self.python or "-"
        state = self.version or ("cannot be imported" if self.python else "not installed")
        return (self.name, state, f"{place} ({self.variable})" if self.is_elsewhere else place, self.purpose)


def has_gpu() -> bool:
    """Whether the driver of an NVIDIA GPU is there; torch is not asked, its import takes seconds."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def installed() -> list[Installed]:
    """Every engine and what is there of it; each is imported in a process of its own, all at once."""
    with ThreadPoolExecutor(len(ENVIRONMENTS)) as pool:
        return list(pool.map(look_at, ENVIRONMENTS.values()))


def look_at(environment: EngineEnvironment) -> Installed:
    """What is there of one engine."""
    python = environment.python
    return Installed(
        environment.name,
        environment.purpose,
        engine_version(environment),
        None if python is None else str(python),
        environment.variable,
        environment.variable in os.environ,
    )


def engine_version(environment: EngineEnvironment) -> str | None:
    """The version of an engine; None where it is not there, or its module cannot be imported."""
    if environment.python is None:
        return None
    if isinstance(environment, OwnEnvironment):
        return _own_version(environment)
    done = subprocess.run(_check(environment, environment.python), capture_output=True, text=True, check=False)
    lines = done.stdout.split()
    return lines[-1] if done.returncode == 0 and lines else None


def _own_version(environment: OwnEnvironment) -> str | None:
    """Its version in this Python, where most of what it imports is loaded: another process would take seconds."""
    try:
        import_module(environment.module)
    except (ImportError, OSError):
        return None
    return metadata.version(environment.distribution or environment.module)


def _check(environment: EngineEnvironment, python: Path) -> list[str]:
    program = VERSION.format(module=environment.module)
    return [str(python), "-c", program, environment.distribution or environment.module]


def commands(environment: EngineEnvironment) -> list[list[str]]:
    """What makes an environment, one command after the other; the last one shows that the engine is there."""
    python = environment.folder / "bin" / "python"
    is_without_gpu = sys.platform == "linux" and not has_gpu()
    groups = environment.without_gpu if is_without_gpu and environment.without_gpu else environment.packages
    has_pip = _has_pip()
    pip = [sys.executable, "-m", "pip", "--python", str(python)] if has_pip else [str(python), "-m", "pip"]
    pip += ["--disable-pip-version-check", "install", "--no-input"]
    if is_without_gpu and any("torch" in group for group in groups):
        pip += ["--extra-index-url", CPU_WHEELS]
    made = [[sys.executable, "-m", "venv", *(["--without-pip"] if has_pip else []), str(environment.folder)]]
    made += [[*pip, *group.split()] for group in groups]
    return [*made, _check(environment, python)]


def _has_pip() -> bool:
    """Whether this environment has pip; one that uv made has none, and a pip in each new environment takes 5 s more.

    `find_spec("pip")` would make setuptools step back for the rest of the process, which then fails to compile.
    """
    return any(metadata.distributions(name="pip"))


def command_lines(environment: EngineEnvironment) -> list[str]:
    """`commands` as a shell takes them."""
    return [shlex.join(command) for command in commands(environment)]


def make_environment(environment: EngineEnvironment, *, force: bool) -> Installed:
    """Make the environment of an engine, unless it is there.

    Args:
        environment: of the engine.
        force: make it again where it is there.

    Raises:
        ArgumentError: if its place holds something else, or another process is making it.
        ResourceError: if the disk has no room, or pip or the engine fails.
    """
    if environment.variable in os.environ:
        raise ArgumentError(
            f"{environment.variable} names a Python elsewhere: '{os.environ[environment.variable]}'",
            hint=f"unset {environment.variable} to have one made here",
        )
    folder = environment.folder
    with naming(folder.parent, CACHE_ELSEWHERE), _locked(environment) as lock:
        if environment.python is not None and not force:
            return look_at(environment)
        _clear(folder)
        what, hint = f"{environment.name} takes about", f"make room, {CACHE_ELSEWHERE}"
        refuse_full_disk(folder.parent, environment.num_bytes, what=what, hint=hint)
        folder.mkdir(parents=True)
        (folder / BEGUN_MARK).touch()
        log = folder.with_name(f"{environment.name}.log")
        log.write_bytes(b"")
        with progress(f"installing {environment.name}"):
            for command in commands(environment):
                _run(command, log, lock)
        write_json(folder / READY_MARK, {"packages": list(environment.packages)})
    return look_at(environment)


def _run(command: list[str], log: Path, lock: int) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(command)}\n")
    # The lock stays with pip: should this process be killed, nobody begins anew beside a pip that still writes.
    if run_logged(command, log, variables={"PYTHONNOUSERSITE": "1"}, held=[lock]) != 0:
        raise ResourceError(
            f"`{shlex.join(command[1:4])}` failed: {last_words(log)}",
            place=str(log),
            hint="the log has all of it; `qlora env NAME --print` prints the commands, to be run and changed by hand",
        )


@contextmanager
def _locked(environment: EngineEnvironment) -> Iterator[int]:
    folder = environment.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder.with_name(f".{folder.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as fault:
            raise ArgumentError(
                "is being made by another process", place=str(folder), hint="wait for it, then type it again"
            ) from fault
        yield lock
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)  # also for a process of pip's session that has yet to close its copy
        os.close(lock)


def _clear(folder: Path) -> None:
    """Delete an environment that was made here, whole or in part; anything else is refused.

    The mark goes last, so that what a killed process leaves is known again.
    """
    if not os.path.lexists(folder):
        return
    is_empty = folder.is_dir() and not any(folder.iterdir())
    if folder.is_symlink() or not (is_empty or (folder / BEGUN_MARK).is_file()):
        raise ArgumentError("was not made by `qlora env`", place=str(folder), hint=f"move it away, {CACHE_ELSEWHERE}")
    (folder / READY_MARK).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != BEGUN_MARK:
            path.unlink()
    (folder / BEGUN_MARK).unlink(missing_ok=True)
    folder.rmdir()
