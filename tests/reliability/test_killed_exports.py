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

KILLED = -signal.SIGKILL
WITH_LLAMA_CPP = pytest.mark.skipif(not os.environ.get("QLORA_GGUF_PYTHON"), reason="llama.cpp is not there")


def export(run: str, out: str, format: str) -> int:
    """In a child of the fork server."""
    from qlora_cli.deploy.export import export_run
    from qlora_cli.deploy.export_options import ExportOptions

    export_run(Path(run), Path(out), ExportOptions(format=format, force=True, max_kl=10.0, quant=QUANTS[format]))
    return 0


QUANTS = {"hf": None, "compressed-tensors": "w8a16", "gguf": "q8_0"}


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def server():
    with ForkServer("transformers.models.llama") as started:
        yield started


CASES = [
    ("compressed-tensors", 2),
    *(
        pytest.param(format, num_cases("EXPORTS", 20), marks=pytest.mark.torture)
        for format in ("hf", "compressed-tensors")
    ),
    pytest.param("gguf", num_cases("EXPORTS", 20), marks=[pytest.mark.torture, WITH_LLAMA_CPP]),
]


@pytest.mark.parametrize(("format", "count"), CASES)
def test_a_killed_export_leaves_nothing_or_all(format, count, server, tmp_path):
    run = save_run(tmp_path / "run", cut_as_gpt2(save_llama(tmp_path / "base", tie_word_embeddings=False)))
    before = contents(tmp_path)
    log, asked = tmp_path / "log", f"{__name__}:export"
    place = tmp_path / "exports"
    place.mkdir()
    out = place / "out"
    arguments = {"run": str(run.path), "out": str(out), "format": format}
    started = time.monotonic()
    assert server.run(asked, arguments, log=log) == 0, log.read_text()[-2000:]
    seconds, names = time.monotonic() - started, {path.name for path in contents(out)}
    shutil.rmtree(out)
    chance = random.Random(count)
    reach = 0.4 if count < 5 else 1.0  # of a run that may be the slowest; few kills must not all come too late
    ended = []
    for number in range(count):
        child = server.start(asked, arguments, log=log)
        moment = reach * seconds * (number + chance.random()) / count
        with os.fdopen(os.pidfd_open(child.pid)) as process:
            if not select.select([process], [], [], moment)[0]:
                os.kill(child.pid, signal.SIGKILL)
        ended.append(child.wait())
        assert ended[-1] in (0, KILLED)
        assert not out.exists() or {path.name for path in contents(out)} == names
        assert ended[-1] == KILLED or out.exists()
    assert KILLED in ended
    assert {path: data for path, data in contents(tmp_path).items() if path in before} == before
    assert server.run(asked, arguments, log=log) == 0
    assert {path.name for path in place.iterdir()} == {"out"}
