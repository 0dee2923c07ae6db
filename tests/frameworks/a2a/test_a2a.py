from __future__ import annotations

import asyncio
import json

import httpx
import pytest
import uvicorn
from agent_gantry.servers.a2a_server import create_a2a_server
from scenario import CHECKS, adrive, assert_hidden, remembered
from serving import serving
from tools import make_agent_gantry_tools

from agent_gantry_state import StateWarning
from agent_gantry_state.integrations.a2a import A2AIdentity

pytestmark = pytest.mark.anyio


def from_header(connection):
    return connection.header("x-user")


@pytest.fixture
def tools():
    return make_agent_gantry_tools()


def task(name, arguments, context=None, skill="tool_execution", **more):
    call = json.dumps({"tool_name": name, "arguments": arguments})
    message = {"role": "user", "parts": [{"type": "text", "text": call}]}
    if context is not None:
        message["contextId"] = context
    return {"jsonrpc": "2.0", "id": 1, "method": "tasks/send", "params": {"skill_id": skill, "messages": [message], **more}}


async def send(client, name, arguments, context=None, user=None, **more):
    headers = {} if user is None else {"x-user": user}
    answer = await client.post("/tasks/send", json=task(name, arguments, context, **more), headers=headers)
    return answer.json()["result"]["result"]


def app_of(tools, **options):
    return A2AIdentity(create_a2a_server(tools.gantry), **options)


@pytest.mark.parametrize("each", CHECKS)
@pytest.mark.parametrize("a", ["", "a"])
async def test_tasks_over_http(tools, each, a):
    async with (
        serving(app_of(tools, user=from_header)) as url,
        httpx.AsyncClient(base_url=url) as ada,
        httpx.AsyncClient(base_url=url) as bob,
    ):

        async def run(session, user, calls):
            client = {"ada": ada, "bob": bob}[user]
            await asyncio.gather(*(send(client, name, arguments, session, user) for name, arguments in calls))

        await adrive(each, tools, run, a)


async def test_what_is_injected_is_in_nothing_that_is_shown(tools):
    async with serving(app_of(tools, user=from_header)) as url, httpx.AsyncClient(base_url=url) as client:
        card = (await client.get("/.well-known/agent.json")).json()
        found = (await client.post("/tasks/send", json=task("note", {}, skill="tool_discovery"))).json()

    assert_hidden(card, found["result"])


@pytest.mark.parametrize("place", ["contextId", "message"])
async def test_the_context_may_stand_in_the_task_as_well(tools, place):
    more = {"contextId": "c1"} if place == "contextId" else {"message": {"contextId": "c1"}}
    async with serving(app_of(tools, user=from_header)) as url, httpx.AsyncClient(base_url=url) as client:
        answer = await send(client, "anote", {"item": "x"}, user="ada", **more)
        assert answer["status"] == "success"

    assert remembered(tools, session="c1", user="ada") == {"items": ["x"]}


async def test_a_context_counts_only_for_a_user_who_is_known(tools):
    for options in ({"user": from_header}, {}):
        async with serving(app_of(tools, **options)) as url, httpx.AsyncClient(base_url=url) as client:
            answer = await send(client, "anote", {"item": "x"}, "c1")
            assert answer["status"] == "failure"
            assert "A2AIdentity(user=...)" in answer["error"]

    assert tools.ran == []


async def test_anonymous_contexts_have_to_be_asked_for(tools):
    async with serving(app_of(tools, anonymous=True)) as url, httpx.AsyncClient(base_url=url) as client:
        assert (await send(client, "anote", {"item": "x"}, "c1"))["status"] == "success"
        # Nobody declared the header.
        assert "no user is known here" in (await send(client, "aprefer", {"key": "a", "value": "b"}, "c1", "ada"))["error"]

    assert remembered(tools, session="c1") == {"items": ["x"]}


async def test_a_task_without_a_context_or_with_two_has_no_session(tools):
    async with serving(app_of(tools, user=from_header)) as url, httpx.AsyncClient(base_url=url) as client:
        none = await send(client, "anote", {"item": "x"}, user="ada")
        two = await send(client, "anote", {"item": "x"}, "c1", "ada", contextId="c2")
        number = await send(client, "anote", {"item": "x"}, 7, "ada")

    for answer in (none, number):
        assert "the contextId of the task, which this one does not have" in answer["error"]
    assert "several values of contextId" in two["error"]
    assert tools.ran == []


@pytest.mark.parametrize("body", [b"", b"[", b"[]", b'{"params": 7}', b'{"params": {"messages": 7}}', b"[" * 100_000])
async def test_a_body_that_is_no_task_is_the_servers_business(tools, body):
    async with serving(app_of(tools, user=from_header)) as url, httpx.AsyncClient(base_url=url) as client:
        answer = await client.post("/tasks/send", content=body, headers={"content-type": "application/json"})

    assert 400 <= answer.status_code < 500


async def test_serve_a2a(tools, monkeypatch):
    """`serve_a2a` as it is called, but for the port, which it cannot tell us: the server is given one that is free."""
    servers = []

    def run(app, host, port):
        servers.append((app, host, port))

    monkeypatch.setattr(uvicorn, "run", run)
    # Whatever is entered around the server is not its callers'.
    with tools.gantry.session("around", user="around"):
        tools.gantry.serve_a2a("127.0.0.1", 8080, user=from_header)
        tools.gantry.serve_a2a("127.0.0.1", 8080)
        for app, _, _ in servers:
            async with serving(app) as url, httpx.AsyncClient(base_url=url) as client:
                await send(client, "anote", {"item": "x"}, "c1", "ada")
                await send(client, "anote", {"item": "y"})

    assert remembered(tools, session="c1", user="ada") == {"items": ["x"]}
    assert remembered(tools, session="around", user="around") == {}


async def test_serve_a2a_of_a_gantry_with_a_session_warns(monkeypatch):
    tools = make_agent_gantry_tools(session="local")
    monkeypatch.setattr(uvicorn, "run", lambda app, host, port: None)

    with pytest.warns(StateWarning, match=r"serve_a2a: whoever can reach .* user= or anonymous=True"):
        tools.gantry.serve_a2a("127.0.0.1", 8080)


def test_user_is_a_function():
    with pytest.raises(TypeError, match="user must be a function"):
        A2AIdentity(None, user="x-user")


def test_example(example):
    assert example("a2a_server.py") == "ada: milk\nbob: bread\nada: milk, tea\nbob: refused\n"
