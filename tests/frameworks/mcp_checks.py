"""What must hold behind an MCP server of any kind. Each environment that has one imports all of this."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from pathlib import Path
from typing import Annotated

import pytest
from mcp.server.auth.middleware.bearer_auth import BearerAuthBackend
from mcp.server.auth.provider import AccessToken
from mcp_kit import (
    MAJOR,
    MODES,
    SERVERS,
    ProtocolError,
    SharedConnection,
    connected,
    connected_by_sse,
    connected_by_stdio,
    connected_here,
    http,
    served,
)
from scenario import CHECKS, adrive, assert_hidden, remembered
from serving import serving
from starlette.middleware.authentication import AuthenticationMiddleware

from agent_gantry_state import DeclarationError, Identity
from agent_gantry_state.integrations.asgi import IdentityMiddleware
from agent_gantry_state.integrations.mcp import MCPIdentity, handle, header, meta, subject

pytestmark = pytest.mark.anyio

#: Whether the server keeps sessions of the protocol, and how the client speaks.
WAYS = [(stateless, mode) for mode in MODES for stateless in (False, True) if not (stateless and mode == "auto")]

BY_HEADERS = {"user": header("x-user"), "session": header("x-session")}


@pytest.fixture(params=SERVERS)
def make(request):
    return SERVERS[request.param]


@pytest.fixture
def server(make):
    return make()


@pytest.fixture
def told(caplog):
    """A client that also tells what the SDK's server 2.x keeps from clients, and logs: the words of a tool's error."""

    async def call(caller, *arguments, **options):
        caplog.clear()
        text, failed = await caller.call(*arguments, **options)
        return (f"{text}\n{caplog.text}", failed) if failed else (text, failed)

    return call


def headers(user=None, session=None, **more):
    given = {"x-user": user, "x-session": session, **more}
    return {key: value for key, value in given.items() if value is not None}


async def check(check, server, url, mode, a):
    async with connected(url, mode, headers("ada")) as ada, connected(url, mode, headers("bob")) as bob:
        callers = {"ada": ada, "bob": bob}

        async def run(session, user, calls):
            caller = callers[user]
            caller.headers["x-session"] = session
            await asyncio.gather(*(caller.call(name, arguments) for name, arguments in calls))

        await adrive(check, server.tools, run, a)


@pytest.mark.parametrize("each", CHECKS)
@pytest.mark.parametrize("way", WAYS, ids=str)
async def test_async_tools_over_http(server, each, way):
    stateless, mode = way
    async with served(server, MCPIdentity(**BY_HEADERS), stateless=stateless) as url:
        await check(each, server, url, mode, "a")


@pytest.mark.parametrize("each", CHECKS)
async def test_sync_tools_over_http(server, each):
    async with served(server, MCPIdentity(**BY_HEADERS)) as url:
        await check(each, server, url, MODES[0], "")


async def test_what_is_injected_is_in_no_schema(server):
    async with served(server, MCPIdentity(**BY_HEADERS)) as url, connected(url) as caller:
        shown = await caller.shown()

    assert len(shown) == len(server.tools.functions)
    assert_hidden(*shown)


async def described(item: Annotated[str, "What to note."], memory: dict) -> str:
    """Note an item."""
    memory.setdefault("items", []).append(item)
    return ", ".join(memory["items"])


async def test_annotation_with_a_description_in_it(server):
    """FastMCP makes a function of its own of one that has such a thing."""
    server.add(server.tools.gantry.with_memory(described))
    async with served(server, MCPIdentity(**BY_HEADERS)) as url:
        async with connected(url, headers=headers("ada", "s1")) as caller:
            assert await caller.call("described", {"item": "x"}) == ("x", False)
            assert await caller.call("described", {"item": "y"}) == ("x, y", False)
            shown = next(tool for tool in await caller.shown() if tool["name"] == "described")

    assert_hidden(shown)


async def test_memory_from_the_client_is_refused_or_ignored(server):
    async with served(server, MCPIdentity(**BY_HEADERS)) as url, connected(url, headers=headers("ada", "s1")) as caller:
        await caller.call("anote", {"item": "x", "memory": {"items": ["planted"]}})

    assert remembered(server.tools, session="s1", user="ada") in ({}, {"items": ["x"]})


async def test_calls_of_one_connection_at_once_are_each_of_their_own_session(server):
    async with served(server, MCPIdentity(user=header("x-user"), session=meta("chat"))) as url:
        async with connected(url, headers=headers("ada")) as caller:
            calls = [(f"chat {number % 4}", f"item {number}") for number in range(40)]
            answers = await asyncio.gather(*(caller.call("anote", {"item": i}, meta={"chat": c}) for c, i in calls))

    assert not any(failed for _, failed in answers)
    for number in range(4):
        items = remembered(server.tools, session=f"chat {number}", user="ada")["items"]
        assert sorted(items) == sorted(item for chat, item in calls if chat == f"chat {number}")


async def test_two_clients_of_one_connection_are_each_served_as_themselves(server):
    """On mcp 1.30 the context in which a tool runs is the first caller's: bob was served as ada."""
    async with served(server, MCPIdentity(user=header("x-user"), session=header("x-user"))) as url:
        shared = SharedConnection(url)
        async with http.AsyncClient(headers=headers("ada")) as ada, http.AsyncClient(headers=headers("bob")) as bob:
            await shared.open(ada)
            for number in range(100):
                for user, client in (("ada", ada), ("bob", bob)):
                    text, failed = await shared.call(client, "aboth", {"item": f"{user} {number}"})
                    assert (text, failed) == (f"{user} {number} is number {number + 1}", False)

    for user in ("ada", "bob"):
        assert remembered(server.tools, session=user, user=user)["items"] == [f"{user} {number}" for number in range(100)]


async def test_two_clients_of_one_connection_at_once(server):
    async with served(server, MCPIdentity(user=header("x-user"), session=header("x-user"))) as url:
        shared = SharedConnection(url)
        async with http.AsyncClient(headers=headers("ada")) as ada, http.AsyncClient(headers=headers("bob")) as bob:
            await shared.open(ada)
            for number in range(20):
                answers = await asyncio.gather(
                    shared.call(ada, "note", {"item": f"ada {number}"}), shared.call(bob, "anote", {"item": f"bob {number}"})
                )
                assert not any(failed for _, failed in answers)

    for user in ("ada", "bob"):
        assert remembered(server.tools, session=user, user=user)["items"] == [f"{user} {number}" for number in range(20)]


async def test_identity_of_a_web_middleware_ends_with_its_request(server):
    """A server that reads the identity from its context, and not from the request, serves nobody as somebody else."""

    def identify(connection):
        return Identity(session=connection.header("x-user"), user=connection.header("x-user"))

    async with served(server, None, around=lambda app: IdentityMiddleware(app, identify)) as url:
        shared = SharedConnection(url)
        async with http.AsyncClient(headers=headers("ada")) as ada, http.AsyncClient(headers=headers("bob")) as bob:
            await shared.open(ada)
            text, failed = await shared.call(bob, "aboth", {"item": "bob's"})

    assert remembered(server.tools, session="ada", user="ada") == {}
    if failed:
        assert MAJOR == 1
        assert "the request that brought it has ended" in text
        assert "MCPIdentity" in text
    else:
        assert remembered(server.tools, session="bob", user="bob") == {"items": ["bob's"]}


@pytest.mark.parametrize("way", WAYS, ids=str)
async def test_what_is_not_declared_does_not_count(make, way, told):
    stateless, mode = way
    server = make(session="local", user="local")
    async with served(server, MCPIdentity(), stateless=stateless) as url:
        async with connected(url, mode, headers("ada", "s1")) as caller:
            text, failed = await told(caller, "anote", {"item": "x"}, meta={"session": "s1", "user": "ada"})
            user_text, user_failed = await told(caller, "aprefer", {"key": "a", "value": "b"})

    assert failed
    assert "no session is known here" in text
    for source in ("MCPIdentity(session=...)", "subject()", "header(...)", "meta(...)", "handle(...)", 'session="local"'):
        assert source in text
    assert user_failed
    assert "MCPIdentity(user=...)" in user_text
    assert server.tools.ran == []


async def test_what_is_declared_and_not_sent_is_an_error_that_names_it(server, told):
    async with served(server, MCPIdentity(user=header("x-user"), session=meta("chat"))) as url, connected(url) as caller:
        text, failed = await told(caller, "anote", {"item": "x"})
        user_text, user_failed = await told(caller, "aprefer", {"key": "a", "value": "b"})

    assert failed
    assert "'chat' in _meta, which the request does not have" in text
    assert user_failed
    assert "the header 'x-user', which the request does not have" in user_text


@pytest.mark.parametrize("twice", ["x-user", "x-session"])
async def test_header_that_is_there_twice_names_nobody(server, twice, told):
    async with served(server, MCPIdentity(**BY_HEADERS)) as url:
        async with connected(url, headers=headers("ada", "s1")) as caller:
            await told(caller, "anote", {"item": "ada's"})
        sent = [*headers("ada", "s1").items(), (twice, "bob")]
        async with connected(url, headers=sent) as caller:
            answers = [await told(caller, "anote", {"item": "x"}), await told(caller, "aprefer", {"key": "a", "value": "b"})]

    for text, failed in answers:
        assert failed
        assert f"header '{twice}' is in the request more than once" in text
        assert "bob" not in text
    assert remembered(server.tools, session="s1", user="ada") == {"items": ["ada's"]}


class Verifier:
    """Takes a token for what it says in plain text."""

    async def verify_token(self, token):
        issuer, _, name = token.partition("/")
        claims = {"iss": issuer} if issuer else {}
        return AccessToken(token=token, client_id="the app", scopes=[], subject=name or None, claims=claims)


def authenticated(app):
    return AuthenticationMiddleware(app, backend=BearerAuthBackend(Verifier()))


def bearer(token):
    return {"authorization": f"Bearer {token}"}


@pytest.mark.parametrize("way", WAYS, ids=str)
async def test_the_authenticated_subject(server, way):
    stateless, mode = way
    who = MCPIdentity(user=subject(), session=subject())
    async with served(server, who, stateless=stateless, around=authenticated) as url:
        for token in ("one/ada", "two/ada", "/ada", "/bob", "one/ada"):
            async with connected(url, mode, bearer(token)) as caller:
                text, failed = await caller.call("aboth", {"item": token})
                assert not failed, text

    assert remembered(server.tools, "user", user="ada") == {"n": 1}
    assert remembered(server.tools, "user", user="bob") == {"n": 1}
    assert remembered(server.tools, "user", user=json.dumps(["one", "ada"])) == {"n": 2}
    assert remembered(server.tools, "user", user=json.dumps(["two", "ada"])) == {"n": 1}


class ClaimsAlone(Verifier):
    """As FastMCP 3 does it: the subject stands in the claims and nowhere else."""

    async def verify_token(self, token):
        verified = await super().verify_token(token)
        claims = {**verified.claims, "sub": verified.subject}
        return verified.model_copy(update={"subject": None, "claims": claims})


async def test_the_subject_may_stand_in_the_claims_alone(server):
    def around(app):
        return AuthenticationMiddleware(app, backend=BearerAuthBackend(ClaimsAlone()))

    who = MCPIdentity(user=subject(), session=subject())
    async with served(server, who, around=around) as url:
        for token in ("one/ada", "two/ada", "/ada", "one/ada"):
            async with connected(url, headers=bearer(token)) as caller:
                text, failed = await caller.call("aboth", {"item": token})
                assert not failed, text

    assert remembered(server.tools, "user", user="ada") == {"n": 1}
    assert remembered(server.tools, "user", user=json.dumps(["one", "ada"])) == {"n": 2}
    assert remembered(server.tools, "user", user=json.dumps(["two", "ada"])) == {"n": 1}


async def test_no_subject_is_nobody(server, told):
    who = MCPIdentity(user=subject(), session=subject())
    async with served(server, who, around=authenticated) as url:
        for sent in ({}, bearer("one/"), {"x-user": "ada"}):
            async with connected(url, headers=sent) as caller:
                text, failed = await told(caller, "anote", {"item": "x"})
                assert failed
                assert "the subject of the access token, which the request does not have" in text


async def note_in(item: str, chat: str, memory: dict) -> str:
    """Note an item in a chat."""
    memory.setdefault("items", []).append(item)
    return ", ".join(memory["items"])


async def test_a_handle_is_checked_against_the_user(server, told):
    server.add(server.tools.gantry.with_memory(note_in))
    async with served(server, MCPIdentity(user=header("x-user"), session=handle("chat"))) as url:
        async with connected(url, headers=headers("ada")) as ada, connected(url, headers=headers("bob")) as bob:
            assert await told(ada, "note_in", {"item": "x", "chat": "c1"}) == ("x", False)
            text, failed = await told(bob, "note_in", {"item": "y", "chat": "c1"})
            assert failed
            assert "this session belongs to another caller" in text
            assert await told(bob, "note_in", {"item": "y", "chat": "c2"}) == ("y", False)
            assert await told(ada, "note_in", {"item": "z", "chat": "c1"}) == ("x, z", False)
            del ada.headers["x-user"]
            text, failed = await told(ada, "note_in", {"item": "!", "chat": "c1"})
            assert failed
            assert "counts only for a user who is known" in text

    assert remembered(server.tools, session="c1", user="ada") == {"items": ["x", "z"]}
    assert remembered(server.tools, session="c2", user="bob") == {"items": ["y"]}


async def test_where_users_are_declared_nothing_counts_without_one(server, told):
    async with served(server, MCPIdentity(**BY_HEADERS, tenant=header("x-tenant"))) as url:
        async with connected(url, headers=headers(session="s1")) as caller:
            text, failed = await told(caller, "anote", {"item": "x"})

    assert failed
    assert "the header 'x-session' counts only for a user who is known" in text
    assert "the header 'x-user', which the request does not have" in text
    assert server.tools.ran == []


async def test_anonymous_callers_have_to_be_asked_for(server, told):
    who = MCPIdentity(user=header("x-user"), session=header("x-session"), anonymous=True)
    async with served(server, who) as url, connected(url, headers=headers(session="s1")) as caller:
        assert await caller.call("anote", {"item": "x"}) == ("x", False)
        caller.headers["x-user"] = "ada"
        text, failed = await told(caller, "anote", {"item": "y"})

    assert failed
    assert "this session belongs to another caller" in text
    assert remembered(server.tools, session="s1") == {"items": ["x"]}


async def test_functions_of_the_program_are_sources(server):
    async def user(request):
        await asyncio.sleep(0)
        return request.connection.header("authorization").removeprefix("Bearer ").partition("/")[2]

    who = MCPIdentity(user=user, session=lambda request: f"{request.method} by function", tenant=meta("tenant"))

    @server.tools.gantry.with_memory(scope="tenant")
    async def rent(memory: dict) -> str:
        """Count a rent that was paid."""
        return str(memory.add("n", 1))

    server.add(rent)
    async with served(server, who) as url, connected(url, headers=bearer("one/ada")) as caller:
        assert await caller.call("aboth", {"item": "x"}) == ("x is number 1", False)
        assert await caller.call("rent", meta={"tenant": "acme"}) == ("1", False)

    assert remembered(server.tools, session="tools/call by function", user="ada") == {"items": ["x"]}
    assert remembered(server.tools, "tenant", tenant="acme") == {"n": 1}


@pytest.mark.parametrize("answer", [lambda: {}["secret"], lambda: 7], ids=["raises", "gives no str"])
async def test_a_source_that_fails_lets_nothing_run(server, answer):
    who = MCPIdentity(user=lambda request: answer() if request.method == "tools/call" else "ada", session="s1")

    async with served(server, who) as url, connected(url) as caller:
        with pytest.raises(ProtocolError) as refused:
            await caller.call("anote", {"item": "x"})

    assert "secret" not in str(refused.value)
    assert server.tools.ran == []


async def test_a_client_in_this_process(server, told):
    MCPIdentity(user="ada", session=meta("chat")).install(server.server)

    async with connected_here(server.server) as caller:
        assert await told(caller, "anote", {"item": "x"}, meta={"chat": "c1"}) == ("x", False)
        text, failed = await told(caller, "anote", {"item": "y"})

    assert failed
    assert "'chat' in _meta" in text
    assert remembered(server.tools, session="c1", user="ada") == {"items": ["x"]}


async def test_the_transport_before_streamable_http(server):
    MCPIdentity(**BY_HEADERS).install(server.server)

    async with serving(server.sse_app()) as url:
        for user, item in itertools.product(("ada", "bob"), ("x", "y")):
            async with connected_by_sse(url, headers(user, f"of {user}")) as caller:
                _, failed = await caller.call("aboth", {"item": item})
                assert not failed

    for user in ("ada", "bob"):
        assert remembered(server.tools, session=f"of {user}", user=user) == {"items": ["x", "y"]}


STDIO = """
import asyncio, logging, sys
logging.disable()
sys.path.insert(0, {here!r})
from mcp_kit import SERVERS
server = SERVERS[{name!r}](session="local", user="local").server
getattr(server, "run", None) and server.run("stdio")
getattr(server, "run_stdio", None) and asyncio.run(server.run_stdio())
"""


@pytest.mark.parametrize("name", SERVERS)
async def test_over_stdio_the_session_is_what_the_gantry_says(name, tmp_path):
    script = tmp_path / "server.py"
    script.write_text(STDIO.format(here=str(Path(__file__).parent), name=name))

    async with connected_by_stdio(sys.executable, str(script)) as caller:
        assert await caller.call("anote", {"item": "x"}) == ("x", False)
        assert await caller.call("note", {"item": "y"}) == ("x, y", False)
        assert await caller.call("aboth", {"item": "z"}) == ("z is number 1", False)


def test_only_servers_that_are_known_are_taken():
    with pytest.raises(DeclarationError, match="no MCP server that is known"):
        MCPIdentity().install(object())


def test_a_source_is_a_function_or_an_id():
    with pytest.raises(TypeError, match="user must be a source"):
        MCPIdentity(user=7)
    with pytest.raises(ValueError, match="must not be empty"):
        MCPIdentity(session="")
