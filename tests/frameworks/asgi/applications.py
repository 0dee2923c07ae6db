"""The same application three times: in Starlette, in FastAPI and in Litestar.

``POST /run`` makes the calls in its body at once, ``POST /run-sync`` in an endpoint that is no coroutine, ``GET /stream``
calls a tool for each part of a response that has begun, ``POST /later`` in the background, and ``/ws`` for each message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

from fastapi import BackgroundTasks, FastAPI
from fastapi import WebSocket as FastAPIWebSocket
from fastapi.responses import StreamingResponse as FastAPIStream
from litestar import Litestar, Request, WebSocket, get, post, websocket
from litestar.background_tasks import BackgroundTask as LitestarTask
from litestar.exceptions import WebSocketDisconnect as LitestarDisconnect
from litestar.middleware import DefineMiddleware
from litestar.response import Response as LitestarResponse
from litestar.response import Stream
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocketDisconnect
from tools import Tools

from agent_gantry_state.integrations.asgi import IdentityMiddleware

Identify = Callable[..., Any]


async def call_all(tools: Tools, calls: list[Any]) -> list[Any]:
    """Make calls at once, sync ones in threads."""

    async def one(name, arguments):
        tool = tools.by_name[name]
        return await (tool(**arguments) if name.startswith("a") else asyncio.to_thread(tool, **arguments))

    answers = await asyncio.gather(*(one(*call) for call in calls), return_exceptions=True)
    return [repr(each) if isinstance(each, BaseException) else each for each in answers]


def call_all_here(tools: Tools, calls: list[Any]) -> list[Any]:
    """Make calls at once from a function that is no coroutine."""
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(copy_context().run, tools.by_name[name], **arguments) for name, arguments in calls]
    return [repr(job.exception()) if job.exception() else job.result() for job in jobs]


async def parts(tools: Tools, items: list[str]):
    for item in items:
        yield await tools.by_name["anote"](item) + "\n"


def starlette_app(tools: Tools, identify: Identify | None, outer: list[Any] = ()):
    async def run(request):
        return JSONResponse(await call_all(tools, await request.json()))

    async def run_sync(request):
        return JSONResponse(await run_in_threadpool(call_all_here, tools, await request.json()))

    async def stream(request):
        return StreamingResponse(parts(tools, request.query_params.getlist("item")))

    async def later(request):
        return JSONResponse([], background=BackgroundTask(call_all, tools, await request.json()))

    async def ws(socket):
        await socket.accept()
        try:
            while True:
                await socket.send_text(await tools.by_name["anote"](await socket.receive_text()))
        except WebSocketDisconnect:
            pass

    routes = [
        Route("/run", run, methods=["POST"]),
        Route("/run-sync", run_sync, methods=["POST"]),
        Route("/stream", stream),
        Route("/later", later, methods=["POST"]),
        WebSocketRoute("/ws", ws),
    ]
    own = [] if identify is None else [Middleware(IdentityMiddleware, identify=identify)]
    return Starlette(routes=routes, middleware=[*outer, *own])


def fastapi_app(tools: Tools, identify: Identify | None, outer: list[Any] = ()):
    own = [] if identify is None else [Middleware(IdentityMiddleware, identify=identify)]
    app = FastAPI(middleware=[*outer, *own])

    @app.post("/run")
    async def run(calls: list[Any]):
        return await call_all(tools, calls)

    @app.post("/run-sync")
    def run_sync(calls: list[Any]):
        return call_all_here(tools, calls)

    @app.get("/stream")
    async def stream(item: str):
        return FastAPIStream(parts(tools, [item] * 3))

    @app.post("/later")
    async def later(calls: list[Any], tasks: BackgroundTasks):
        tasks.add_task(call_all, tools, calls)
        return []

    @app.websocket("/ws")
    async def ws(socket: FastAPIWebSocket):
        await socket.accept()
        try:
            while True:
                await socket.send_text(await tools.by_name["anote"](await socket.receive_text()))
        except WebSocketDisconnect:
            pass

    return app


def litestar_app(tools: Tools, identify: Identify | None, outer: list[Any] = ()):
    @post("/run")
    async def run(request: Request) -> list[Any]:
        return await call_all(tools, await request.json())

    @post("/run-sync", sync_to_thread=True)
    def run_sync(data: list[Any]) -> list[Any]:
        return call_all_here(tools, data)

    @get("/stream")
    async def stream(item: str) -> Stream:
        return Stream(parts(tools, [item] * 3))

    @post("/later")
    async def later(request: Request) -> LitestarResponse[list[Any]]:
        return LitestarResponse([], background=LitestarTask(call_all, tools, await request.json()))

    @websocket("/ws")
    async def ws(socket: WebSocket) -> None:
        await socket.accept()
        try:
            while True:
                await socket.send_text(await tools.by_name["anote"](await socket.receive_text()))
        except LitestarDisconnect:
            pass

    own = [] if identify is None else [DefineMiddleware(IdentityMiddleware, identify=identify)]
    return Litestar([run, run_sync, stream, later, ws], middleware=[*outer, *own])


APPLICATIONS = {"Starlette": starlette_app, "FastAPI": fastapi_app, "Litestar": litestar_app}
