"""The middleware for web applications, without one; tests/frameworks has them."""

from __future__ import annotations

import asyncio

import pytest

from agent_gantry_state import (
    AmbiguousIdentityError,
    DeclarationError,
    Gantry,
    Identity,
    MissingIdentityError,
    current_identity,
)
from agent_gantry_state.integrations.asgi import Connection, IdentityMiddleware


def request(*headers, **more):
    return {"type": "http", "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers], **more}


def test_header_is_found_however_its_name_is_written():
    connection = Connection(request(("X-User", "ada"), ("x_user", "eve"), ("x-user-", "eve")))

    assert connection.header("x-user") == "ada"
    assert connection.header("X-USER") == "ada"
    assert connection.header("x-tenant") is None


@pytest.mark.parametrize("value", ["", "ada, bob", "\u00e4da", "a=b;c"])
def test_header_is_taken_as_it_is(value):
    assert Connection(request(("x-user", value))).header("x-user") == (value or None)


@pytest.mark.parametrize("headers", [[("x-user", "ada"), ("X-User", "bob")], [("x-user", "ada"), ("x-user", "")]])
def test_header_with_two_values_is_ambiguous(headers):
    with pytest.raises(AmbiguousIdentityError, match="header 'x-user' is in the request more than once") as refused:
        Connection(request(*headers)).header("x-user")

    assert refused.value.source == "header 'x-user'"
    assert "ada" not in str(refused.value)
    assert Connection(request(("x-user", "ada"), ("x-user", "ada"))).header("x-user") == "ada"


@pytest.mark.parametrize(
    ("cookies", "value"),
    [
        (["chat=c1"], "c1"),
        (["a=1; chat=c1;b=2"], "c1"),
        (["a=1", "chat=c1"], "c1"),
        (["chat=x=y"], "x=y"),
        (['chat="c 1"'], '"c 1"'),
        (["chat="], None),
        (["chat", "xchat=c2", "Chat=c3"], None),
        ([], None),
        (["chat=c1; chat=c1"], "c1"),
    ],
)
def test_cookie(cookies, value):
    assert Connection(request(*(("cookie", each) for each in cookies))).cookie("chat") == value


@pytest.mark.parametrize("cookies", [["chat=c1; chat=c2"], ["chat=c1", "chat=c2"], ["chat=c1; chat="]])
def test_cookie_with_two_values_is_ambiguous(cookies):
    with pytest.raises(AmbiguousIdentityError, match="cookie 'chat'"):
        Connection(request(*(("cookie", each) for each in cookies))).cookie("chat")


def test_user_is_whom_another_middleware_has_authenticated():
    class Guest:
        is_authenticated = False

    assert Connection(request(user="ada")).user == "ada"
    assert Connection(request(user=Guest())).user is None
    assert Connection(request(user=None)).user is None
    with pytest.raises(DeclarationError, match="inside the one that authenticates"):
        _ = Connection(request()).user


class Application:
    """Calls a tool in every request."""

    def __init__(self, gantry):
        @gantry.with_memory
        def note(item, memory):
            memory.setdefault("items", []).append(item)
            return list(memory["items"])

        self.note = note
        self.answers = []

    async def __call__(self, scope, receive, send):
        try:
            self.answers.append(self.note(scope["item"]))
        except MissingIdentityError as error:
            self.answers.append(error)


def by_header(connection):
    return Identity(session=connection.header("x-session"), user=connection.header("x-user"))


@pytest.mark.anyio
async def test_tool_is_called_by_whom_the_request_names():
    application = Application(Gantry())
    middleware = IdentityMiddleware(application, by_header)

    for session in ("s1", "s2", "s1"):
        await middleware(request(("x-session", session), item=session), None, None)
        assert current_identity() is None

    assert application.answers == [["s1"], ["s2"], ["s1", "s1"]]


@pytest.mark.anyio
async def test_who_is_unknown_is_nobody_also_where_the_gantry_has_a_session():
    application = Application(Gantry(session="local", user="local"))

    for identify in (by_header, lambda connection: None):
        await IdentityMiddleware(application, identify)(request(item="x"), None, None)
        await IdentityMiddleware(application, identify)(request(("x-user", "ada"), item="x"), None, None)

    assert len(application.answers) == 4
    for answer in application.answers:
        assert "the function that IdentityMiddleware was given finds no session in this request" in str(answer)


@pytest.mark.anyio
async def test_ambiguous_request_is_nobodys():
    application = Application(Gantry(session="local"))
    two = request(("x-session", "s1"), ("x-user", "ada"), ("x-user", "bob"), item="x")

    await IdentityMiddleware(application, by_header)(two, None, None)

    assert "header 'x-user' is in the request more than once" in str(application.answers[0])


@pytest.mark.anyio
async def test_async_function_and_further_keys():
    gantry = Gantry()
    tenants = []

    @gantry.with_memory(scope="tenant")
    def rent(memory):
        tenants.append(memory.add("n", 1))

    async def identify(connection):
        return Identity("s1", keys={"tenant": connection.header("x-tenant")})

    async def application(scope, receive, send):
        rent()

    for tenant in ("a", "b", "a"):
        await IdentityMiddleware(application, identify)(request(("x-tenant", tenant)), None, None)

    assert tenants == [1, 1, 2]


def test_identity_that_was_adopted_with_is_kept():
    seen = []

    async def application(scope, receive, send):
        seen.append(current_identity())

    identity = Identity("s1", "ada", "c1", {"tenant": "acme"}, adopt=True)
    asyncio.run(IdentityMiddleware(application, lambda connection: identity)(request(), None, None))

    assert seen[0] == identity
    assert seen[0].adopt


def test_work_that_outlives_its_request_is_nobodys():
    """As where a server goes on in the task of the first request with the next one, which mcp 1.x does."""
    application = Application(Gantry(session="local"))

    async def run():
        ended = asyncio.Event()

        async def outlive():
            await ended.wait()
            await application({"item": "late"}, None, None)

        async def begins_work(scope, receive, send):
            tasks.append(asyncio.create_task(outlive()))
            await application(scope, receive, send)

        tasks = []
        await IdentityMiddleware(begins_work, by_header)(request(("x-session", "s1"), item="in time"), None, None)
        ended.set()
        await tasks[0]

    asyncio.run(run())

    assert application.answers[0] == ["in time"]
    assert "the request that brought it has ended" in str(application.answers[1])


def test_session_in_work_that_outlives_its_request_uncovers_nobody():
    gantry = Gantry(session="local")
    application = Application(gantry)

    async def run():
        ended = asyncio.Event()

        async def outlive():
            await ended.wait()
            with gantry.session("its own"):
                await application({"item": "in it"}, None, None)
            await application({"item": "after it"}, None, None)

        async def begins_work(scope, receive, send):
            tasks.append(asyncio.create_task(outlive()))

        tasks = []
        middleware = IdentityMiddleware(begins_work, by_header)
        await IdentityMiddleware(middleware, by_header)(request(("x-session", "s1")), None, None)
        assert current_identity() is None
        ended.set()
        await tasks[0]

    asyncio.run(run())

    assert application.answers[0] == ["in it"]
    assert "the request that brought it has ended" in str(application.answers[1])


@pytest.mark.anyio
async def test_what_identify_does_wrong_reaches_the_server():
    application = Application(Gantry())

    with pytest.raises(KeyError):
        await IdentityMiddleware(application, lambda connection: {}["user"])(request(item="x"), None, None)
    with pytest.raises(TypeError, match="must answer with an Identity"):
        await IdentityMiddleware(application, lambda connection: "ada")(request(item="x"), None, None)
    with pytest.raises(TypeError, match="identify must be a function"):
        IdentityMiddleware(application, "x-user")
    assert application.answers == []


@pytest.mark.anyio
async def test_what_is_no_request_is_passed_on():
    seen = []

    async def application(scope, receive, send):
        seen.append(scope["type"])

    await IdentityMiddleware(application, lambda connection: 1 / 0)({"type": "lifespan"}, None, None)

    assert seen == ["lifespan"]
