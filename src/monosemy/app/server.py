"""The server: binds to this machine alone, and answers nobody who calls it by another name."""

from __future__ import annotations

import socket
import sys
import time
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from monosemy.app import circuits, compare, feature_map, features, overview, prompt, steer
from monosemy.app.columns import named_by
from monosemy.app.pages import STATIC, error_page, report_css, runs_page
from monosemy.app.runs import OpenRun, open_runs
from monosemy.errors import UserError

HOST = "127.0.0.1"
_NAMES = {HOST, "localhost", "::1"}
_FIRST_PAGE = 5.0
"""Seconds that the first page has the processor to itself, before search is made ready."""
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    # Not `no-referrer`: forms would then be sent from the origin `null`, which is refused.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
PAGES = (
    overview.router,
    features.router,
    prompt.router,
    feature_map.router,
    steer.router,
    compare.router,
)


def make_app(folders: Sequence[Path]) -> FastAPI:
    """Return the app that shows some runs.

    Raises:
        UserError: a folder is no run.
    """
    app = FastAPI(title="monosemy", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.runs, app.state.folders = open_runs(folders), list(folders)
    app.add_middleware(_Guard)
    app.exception_handler(UserError)(_explain)
    app.exception_handler(HTTPException)(_refuse)
    app.exception_handler(RequestValidationError)(_refuse)
    app.get("/static/report.css")(_report_css)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.get("/")(_home)
    app.include_router(circuits.router)
    for router in PAGES:
        app.include_router(router, prefix="/{name}")
    return app


class _Guard:
    """Refuses requests for another host, which a page elsewhere could make a browser send here."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if urlsplit(f"//{host}").hostname not in _NAMES or (
            origin and urlsplit(origin).netloc != host
        ):
            refusal = JSONResponse({"error": "this server answers this machine alone"}, 403)
            await refusal(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, answer)


async def _explain(request: Request, error: Exception) -> Response:
    """Say what is wrong, as a page to people and as JSON to pages."""
    assert isinstance(error, UserError)
    if "text/html" in request.headers.get("accept", ""):
        return error_page(request, error)
    return JSONResponse({"error": error.message, "hint": error.hint}, 400)


async def _refuse(request: Request, error: Exception) -> Response:
    """Say that there is no such page, in the same way."""
    path = request.url.path
    response = await _explain(request, UserError(f"there is no page `{path}`", "start at /"))
    response.status_code = getattr(error, "status_code", 404)
    return response


async def _report_css() -> Response:
    return Response(report_css(), media_type="text/css")


async def _home(request: Request) -> Response:
    runs: dict[str, OpenRun] = request.app.state.runs
    if len(runs) == 1:
        return RedirectResponse(f"/{next(iter(runs))}/")
    return runs_page(request, list(runs.values()), circuits.has_circuits(request))


def serve(folders: Sequence[Path], *, port: int = 8440, browser: bool = True) -> None:
    """Show runs on this machine until interrupted.

    Args:
        folders: of the runs.
        port: where; the next one that is free.
        browser: open a browser there.

    Raises:
        UserError: a folder is no run, or no port is free.
    """
    import uvicorn

    app = make_app(folders)
    listening = _listen(port)
    address = f"http://{HOST}:{listening.getsockname()[1]}/"
    sys.stderr.write(f"showing {', '.join(app.state.runs)} at {address}\nctrl-c ends it\n")
    if browser:
        webbrowser.open(address)
    Thread(target=_warm, args=(app.state.runs,), daemon=True).start()
    config = uvicorn.Config(app, log_level="warning", server_header=False)
    uvicorn.Server(config).run(sockets=[listening])


def _warm(runs: dict[str, OpenRun]) -> None:
    """Read what the first pages and the first search need, before somebody waits for it."""
    indices = []
    for run in runs.values():
        with suppress(UserError):
            indices.append(run.features.index)
            named_by(indices[-1])
    time.sleep(_FIRST_PAGE)
    for index in indices:
        index.search("")


def _listen(port: int) -> socket.socket:
    for tried in range(port, port + 20):
        # The protocol is named, for asyncio sends what is small at once only where it is.
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, tried))
            listening.listen()  # a browser that is quicker than the server waits
        except OSError:
            listening.close()
            continue
        return listening
    raise UserError(f"no port from {port} to {port + 19} is free", "choose another with --port")
