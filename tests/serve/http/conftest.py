"""A server in this process with the real engine: two adapters on a tiny base, on a free port."""

from __future__ import annotations

import sys
import threading
import traceback
from dataclasses import dataclass, replace

import httpx
import pytest
from openai import OpenAI

from qlora_cli.model.tuned import find_tuned
from qlora_cli.serve.engine.loading import LoadedEngine, load_engine
from qlora_cli.serve.engine.scheduler import EngineLimits
from qlora_cli.serve.http.limits import HttpLimits
from qlora_cli.serve.http.server import listen, run_server
from qlora_cli.serve.http.serving import Access, Serving
from tests.deploy.models import save_llama, save_run

LIMITS = HttpLimits(
    max_body_bytes=1 << 20,
    header_seconds=1,
    body_seconds=1,
    answer_seconds=30,
    send_seconds=5,
    grace_seconds=5,
    default_new_tokens=48,
)


HTTP = httpx.Client(timeout=60, trust_env=False, limits=httpx.Limits(max_connections=None))


@dataclass
class Running:
    """A server that answers."""

    loaded: LoadedEngine
    serving: Serving
    address: str
    port: int

    def client(self, **settings) -> OpenAI:
        """The official client, unchanged."""
        return OpenAI(base_url=f"{self.address}/v1", **({"api_key": "any", "max_retries": 0} | settings))

    def get(self, path: str, **settings) -> httpx.Response:
        return HTTP.get(self.address + path, **settings)

    def post(self, path: str, body, **settings) -> httpx.Response:
        return HTTP.post(self.address + path, json=body, **settings)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    base = save_llama(tmp_path_factory.mktemp("base"), tie_word_embeddings=False)
    runs = [save_run(tmp_path_factory.mktemp(name), base, quantization="none", r=r) for name, r in (("a", 4), ("b", 8))]
    return [run.path for run in runs]


@pytest.fixture(scope="session")
def start_server(folders):
    """Start servers in threads; they are stopped when the tests are over."""
    stops = []

    two_runs = folders

    def start(access: Access | None = None, limits: HttpLimits = LIMITS, engine=None, folders=two_runs) -> Running:
        sources = [(name, find_tuned(folder)) for name, folder in zip(("first", "second"), folders, strict=False)]
        loaded = load_engine(sources, engine or EngineLimits())
        serving = Serving(loaded.engine, loaded.renderer, access or Access(), limits)
        listening = listen("127.0.0.1", 0)
        ready, servers = threading.Event(), []
        port = listening.getsockname()[1]

        def keep(server) -> None:
            servers.append(server)

        thread = threading.Thread(target=run_server, args=(serving, listening, ready.set, keep), daemon=True)
        thread.start()
        assert ready.wait(30)

        def stop() -> None:
            servers[0].should_exit = True
            thread.join(30)
            frame = sys._current_frames().get(thread.ident)
            assert not thread.is_alive(), "".join(traceback.format_stack(frame))

        stops.append(stop)
        return Running(loaded, serving, f"http://127.0.0.1:{port}", port)

    yield start
    for stop in stops:
        stop()


@pytest.fixture(scope="session")
def server(start_server):
    return start_server()


def with_limits(**changes) -> HttpLimits:
    return replace(LIMITS, **changes)
