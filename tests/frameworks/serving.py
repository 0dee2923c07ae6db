"""A real server on loopback, for a test: ``async with serving(app) as url``."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

import uvicorn


class Server(uvicorn.Server):
    """Says when it is up."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()

    async def startup(self, sockets=None):
        await super().startup(sockets)
        self.is_up.set()


@contextlib.asynccontextmanager
async def serving(app):
    """Serve an ASGI application; gives its URL, without a slash at the end."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        running = asyncio.create_task(server.serve([listener]))
        up = asyncio.create_task(server.is_up.wait())
        await asyncio.wait([running, up], return_when=asyncio.FIRST_COMPLETED)
        assert server.started, "the server did not start"
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await running
            # What MCP servers stream with takes the end of one server for the end of all.
            if sse := sys.modules.get("sse_starlette.sse"):
                server.should_exit = sse.AppStatus.should_exit = False
