"""An export that is killed leaves a whole folder or none, whatever its format, and the next one clears what is left."""

import os
import random
import select
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.deploy.models import cut_as_gpt2, save_llama, save_run
from tests.reliability.conftest import num_cases
from tests.reliability.harness.forkserver import ForkServer
from tests.reliability.harness.rank_runs import send_at

KILLED = -signal.SIGKILL

POINTS = (("qlora_cli.deploy.merge:write_model", 1), ("qlora_cli.deploy.export_attempts:_write", 1))
"""Function, and which call of it: as the adapter is merged, and when all that comes before the engine is there."""


def export(run: str, out: str, format: str, killed_at: tuple[str, int] | None = None) -> int:
    """In a child of the fork server, which kills itself before a call of a function where one is named."""
    from qlora_cli.deploy.export import export_run
    from qlora_cli.deploy.export_options import ExportOptions

    if killed_at is not None:
        send_at(*killed_at, [signal.SIGKILL])
    export_run(Path(run), Path(out), ExportOptions(format=format, force=True, max_kl=10.0, **CHOICES[format]))
    return 0


CHOICES = {
    "hf": {},
    "adapter": {},
    "compressed-tensors": {"quant": "w8a16"},
    "bnb": {"quant": "int8"},
    "gguf": {"quant": "q8_0"},
    "ollama": {"quant": "q8_0"},
    "gguf-adapter": {"quant": "f32", "base_quant": "q8_0"},
    "mlx": {"quant": "8bit", "group_size": 32},
    "gptq": {"quant": "w8a16", "group_size": 32},
}

ENVIRONMENTS = {"gguf": "GGUF", "ollama": "GGUF", "gguf-adapter": "GGUF", "mlx": "MLX", "gptq": "GPTQ"}
"""Format -> the environment that it needs, whose interpreter QLORA_..._PYTHON names."""


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def server():
    with ForkServer("transformers.models.llama") as started:
        yield started


@pytest.fixture
def arguments(tmp_path):
    """Of an export into `exports/out`, but for its format."""
    run = save_run(tmp_path / "run", cut_as_gpt2(save_llama(tmp_path / "base", tie_word_embeddings=False)))
    (tmp_path / "exports").mkdir()
    return {"run": str(run.path), "out": str(tmp_path / "exports" / "out")}


EXPORT = f"{__name__}:export"


def test_an_export_that_is_killed_on_its_way_leaves_nothing_and_the_next_one_clears_it(server, arguments, tmp_path):
    before, log, out = contents(tmp_path), tmp_path / "log", Path(arguments["out"])
    arguments["format"] = "compressed-tensors"
    for point in POINTS:
        assert server.run(EXPORT, {**arguments, "killed_at": point}, log=log) == KILLED, log.read_text()[-2000:]
        assert not out.exists()
        assert list(out.parent.iterdir())
    assert server.run(EXPORT, arguments, log=log) == 0, log.read_text()[-2000:]
    assert {path: data for path, data in contents(tmp_path).items() if path in before} == before
    assert {path.name for path in out.parent.iterdir()} == {"out"}


@pytest.mark.torture
@pytest.mark.parametrize("format", CHOICES)
def test_an_export_killed_at_any_moment_leaves_nothing_or_all(format, server, arguments, tmp_path):
    if format in ENVIRONMENTS and not os.environ.get(f"QLORA_{ENVIRONMENTS[format]}_PYTHON"):
        pytest.skip(f"needs QLORA_{ENVIRONMENTS[format]}_PYTHON, as `make test-engines` sets it")
    before, log, out = contents(tmp_path), tmp_path / "log", Path(arguments["out"])
    arguments["format"], count = format, num_cases("EXPORTS", 20)
    started = time.monotonic()
    assert server.run(EXPORT, arguments, log=log) == 0, log.read_text()[-2000:]
    seconds, names = time.monotonic() - started, {path.name for path in contents(out)}
    shutil.rmtree(out)
    chance = random.Random(count)
    ended = []
    for number in range(count):
        child = server.start(EXPORT, arguments, log=log)
        moment = seconds * (number + chance.random()) / count
        with os.fdopen(os.pidfd_open(child.pid)) as process:
            if not select.select([process], [], [], moment)[0]:
                os.kill(child.pid, signal.SIGKILL)
        ended.append(child.wait())
        assert ended[-1] in (0, KILLED)
        assert not out.exists() or {path.name for path in contents(out)} == names
        assert ended[-1] == KILLED or out.exists()
    assert KILLED in ended
    assert {path: data for path, data in contents(tmp_path).items() if path in before} == before
    assert server.run(EXPORT, arguments, log=log) == 0
    assert {path.name for path in out.parent.iterdir()} == {"out"}
