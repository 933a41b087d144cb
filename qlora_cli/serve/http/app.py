"""The paths of the server, and what answers them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from qlora_cli.serve.http.answering import AnswerResponse
from qlora_cli.serve.http.asked import Asked, read_chat, read_completion
from qlora_cli.serve.http.bodies import read_body
from qlora_cli.serve.http.faults import TYPES, ApiFault
from qlora_cli.serve.http.fields import Body
from qlora_cli.serve.http.guard import Guard
from qlora_cli.serve.http.metrics import CONTENT_TYPE
from qlora_cli.serve.http.page import chat_page
from qlora_cli.serve.http.serving import Serving

Handler = Callable[[Request], Awaitable[Response]]


def build_app(serving: Serving) -> ASGIApp:
    """The application.

    FastAPI's own pages and its checks of bodies are off: the pages load scripts from elsewhere, and a body is read by
    `bodies.py`, whose errors are those of OpenAI's API.

    Args:
        serving: what answers.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    handlers = _handlers(serving)
    for path, (method, handler) in handlers.items():
        app.add_route(path, handler, methods=[method])
    app.add_exception_handler(HTTPException, _tell_http)
    app.add_exception_handler(ApiFault, _tell_fault)
    return Guard(app, serving, frozenset(handlers))


def _handlers(serving: Serving) -> dict[str, tuple[str, Handler]]:
    page = chat_page(serving.engine.names, has_key=bool(serving.access.api_key))

    async def show_page(_: Request) -> Response:
        return HTMLResponse(page.html, headers={"content-security-policy": page.policy})

    async def tell_health(_: Request) -> Response:
        state = serving.engine.state()
        status = "closing" if serving.is_closing else "ok"
        told = {"status": status, "running": state.num_running, "waiting": state.num_waiting}
        return JSONResponse(told, 503 if serving.is_closing else 200)

    async def tell_metrics(_: Request) -> Response:
        return PlainTextResponse(serving.metrics.text(serving.engine.state()), media_type=CONTENT_TYPE)

    async def list_models(_: Request) -> Response:
        models = [
            {"id": name, "object": "model", "created": serving.created, "owned_by": "qlora", "root": name}
            for name in serving.engine.names
        ]
        return JSONResponse({"object": "list", "data": models})

    return {
        "/": ("GET", show_page),
        "/health": ("GET", tell_health),
        "/metrics": ("GET", tell_metrics),
        "/v1/models": ("GET", list_models),
        "/v1/chat/completions": ("POST", _answering(serving, read_chat)),
        "/v1/completions": ("POST", _answering(serving, read_completion)),
    }


def _answering(serving: Serving, read: Callable[[Body, tuple[str, ...]], Asked]) -> Handler:
    async def answer(request: Request) -> Response:
        serving.refuse_while_closing()
        asked = read(await read_body(request, serving.limits), serving.engine.names)
        return AnswerResponse(serving, asked, await serving.start(asked))

    return answer


async def _tell_http(_: Request, fault: Exception) -> Response:
    assert isinstance(fault, HTTPException)
    status = fault.status_code if fault.status_code in TYPES else 400
    text = {404: "there is no such path", 405: "the path takes another method"}.get(status, str(fault.detail))
    return await _tell_fault(_, ApiFault(status, text))


async def _tell_fault(_: Request, fault: Exception) -> Response:
    assert isinstance(fault, ApiFault)
    return JSONResponse(fault.body, fault.status, fault.headers)
