from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from applications import APPLICATIONS, call_all, call_all_here
from fastapi import Depends, FastAPI, Header
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult, DefineMiddleware
from scenario import CHECKS, adrive, remembered
from serving import serving
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from tools import make_tools
from websockets.asyncio.client import connect

from agent_gantry_state import Identity

pytestmark = pytest.mark.anyio


def from_header_and_cookie(connection):
    return Identity(session=connection.cookie("chat"), user=connection.header("x-user"))


@pytest.fixture(params=APPLICATIONS)
def make(request):
    return APPLICATIONS[request.param]


@pytest.fixture
def tools():
    return make_tools()


def sent(user=None, session=None):
    return {**({"x-user": user} if user else {}), **({"cookie": f"other=1; chat={session}"} if session else {})}


@pytest.mark.parametrize("each", CHECKS)
@pytest.mark.parametrize(("path", "a"), [("/run", "a"), ("/run", ""), ("/run-sync", "")])
async def test_tools_in_endpoints(make, tools, each, path, a):
    async with serving(make(tools, from_header_and_cookie)) as url, httpx.AsyncClient(base_url=url) as client:

        async def run(session, user, calls):
            answer = await client.post(path, json=calls, headers=sent(user, session))
            assert answer.is_success, answer.text

        await adrive(each, tools, run, a)


async def test_a_response_that_is_streamed(make, tools):
    async with serving(make(tools, from_header_and_cookie)) as url, httpx.AsyncClient(base_url=url) as client:

        async def stream(user):
            items = [("item", user)] * 3
            return (await client.get("/stream", params=items, headers=sent(user, f"of {user}"))).text

        texts = await asyncio.gather(*(stream(user) for user in ("ada", "bob")))

    assert texts == [f"{user}\n{user}, {user}\n{user}, {user}, {user}\n" for user in ("ada", "bob")]
    assert remembered(tools, session="of ada", user="ada") == {"items": ["ada"] * 3}


async def test_websockets_of_two_users(make, tools):
    async with serving(make(tools, from_header_and_cookie)) as url:
        address = url.replace("http", "ws") + "/ws"
        async with (
            connect(address, additional_headers=sent("ada", "of ada"), proxy=None) as ada,
            connect(address, additional_headers=sent("bob", "of bob"), proxy=None) as bob,
        ):
            for number in range(1, 101):
                for user, socket in (("ada", ada), ("bob", bob)):
                    await socket.send(user)
                    assert await socket.recv() == ", ".join([user] * number)


async def test_a_background_task(make, tools):
    async with serving(make(tools, from_header_and_cookie)) as url, httpx.AsyncClient(base_url=url) as client:
        await client.post("/later", json=[("anote", {"item": "x"})], headers=sent("ada", "s1"))

    # The server waits for it before it ends.
    assert remembered(tools, session="s1", user="ada") == {"items": ["x"]}


@pytest.mark.parametrize("path", ["/run", "/run-sync"])
async def test_who_is_unknown_is_nobody_also_where_the_gantry_has_a_session(make, path):
    tools = make_tools(session="local", user="local")
    async with serving(make(tools, from_header_and_cookie)) as url, httpx.AsyncClient(base_url=url) as client:
        for headers in ({}, {"cookie": "chat="}, [("x-user", "ada"), ("x-user", "bob"), ("cookie", "chat=s1")]):
            answer = await client.post(path, json=[("note", {"item": "x"})], headers=headers)
            assert "MissingIdentityError" in answer.text
            assert "bob" not in answer.text

    assert tools.ran == []


async def test_the_authenticated_user(make, tools):
    class Backend(AuthenticationBackend):
        async def authenticate(self, connection):
            name = connection.headers.get("authorization")
            return (AuthCredentials(), SimpleUser(name)) if name else None

    class LitestarAuthentication(AbstractAuthenticationMiddleware):
        async def authenticate_request(self, connection):
            name = connection.headers.get("authorization")
            return AuthenticationResult(user=SimpleUser(name) if name else None, auth=None)

    async def identify(connection):
        await asyncio.sleep(0)
        user = connection.user and connection.user.display_name
        return user and Identity(session=f"of {user}", user=user)

    outer = [Middleware(AuthenticationMiddleware, backend=Backend())]
    if make is APPLICATIONS["Litestar"]:
        outer = [DefineMiddleware(LitestarAuthentication)]
    async with serving(make(tools, identify, outer)) as url, httpx.AsyncClient(base_url=url) as client:
        calls = [("aboth", {"item": "x"})]
        for user in ("ada", "bob"):
            await client.post("/run", json=calls, headers={"authorization": user, "x-user": "eve"})
        answer = await client.post("/run", json=calls, headers={"x-user": "eve"})

    assert "MissingIdentityError" in answer.text
    for user in ("ada", "bob"):
        assert remembered(tools, session=f"of {user}", user=user) == {"items": ["x"]}


async def test_a_dependency_of_fastapi_can_open_the_session(tools):
    async def known(x_user: str = Header()):
        async with tools.gantry.session(f"of {x_user}", user=x_user):
            yield

    app = FastAPI(dependencies=[Depends(known)])

    @app.post("/run")
    async def run(calls: list[Any]):
        return await call_all(tools, calls)

    @app.post("/run-sync")
    def run_sync(calls: list[Any]):
        return call_all_here(tools, calls)

    async with serving(app) as url, httpx.AsyncClient(base_url=url) as client:
        for number in range(1, 101):
            for user, path in (("ada", "/run"), ("bob", "/run-sync")):
                answer = await client.post(path, json=[("both", {"item": user})], headers=sent(user))
                assert answer.json() == [f"{user} is number {number}"]


def test_example(example):
    assert example("fastapi_app.py") == "ada: milk\nbob: bread\nada: milk, tea\n"
