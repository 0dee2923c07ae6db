"""Whatever goes wrong, on any store, nothing that comes of it holds a password, an id or a value.

All that comes out is searched: errors with what they are chained to, shown or not, and what is pickled of them; logs,
warnings, events, names of threads, and how the objects describe themselves that a debugger or a report may show. Of the
variables of our own frames only passwords are kept out: an id or a value has to be in one to be worked on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pathlib
import pickle
import socket
import sqlite3
import threading
import traceback
import uuid
import warnings
import zlib

import psycopg
import pytest
import redis
import servers
from guarded import encrypted, guarded_memcached
from pydantic import BaseModel, field_validator

from agent_gantry_state import (
    CorruptEntryError,
    DeclarationError,
    Gantry,
    MemoryConflictError,
    MemoryErasedError,
    MemoryTooLargeError,
    MemoryValidationError,
    MissingIdentityError,
    ReadOnlyMemoryError,
    Scope,
    SessionOwnerError,
    StateError,
    StoreError,
    SyncSession,
    UndeclaredKeyError,
    UnstorableValueError,
    codec,
)
from agent_gantry_state.stores import rows, whole

ID, VALUE, PASSWORD = "id-8c1f", "value-5d2e", "pass-77ab"
PACKAGE = str(pathlib.Path(__file__).parents[2] / "agent_gantry_state")


def chained(error):
    """An error and all that it is chained to, also what is not shown."""
    found, waiting = [], [error]
    while waiting:
        one = waiting.pop()
        if one is not None and one not in found:
            found.append(one)
            waiting += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
    return found


def told_by(error):
    """What is told by an error, by name."""
    yield "traceback", "".join(traceback.format_exception(error))
    for one in chained(error):
        yield f"{type(one).__name__}: str", str(one)
        yield f"{type(one).__name__}: repr", repr(one)
        yield f"{type(one).__name__}: args", repr(one.args)
        # Such as the whole text of a UnicodeEncodeError, or what a decoder was reading.
        attributes = [name for name in dir(one) if not name.startswith("__")]
        yield f"{type(one).__name__}: attributes", repr([getattr(one, name, None) for name in attributes])
        yield f"{type(one).__name__}: notes", repr(getattr(one, "__notes__", ()))
    yield "pickled", repr(pickle.dumps(error))


def variables_of(error):
    """What the variables of our frames hold, which reports of errors may show."""
    for one in chained(error):
        for frame, line in traceback.walk_tb(one.__traceback__):
            if frame.f_code.co_filename.startswith(PACKAGE):
                for name, value in frame.f_locals.items():
                    # What a tool has nested too deeply cannot be shown by anybody.
                    with contextlib.suppress(RecursionError):
                        yield f"{frame.f_code.co_name}:{line} {name}", repr(value)


def leaks(told, *secrets):
    """Where one of *secrets* is in what is told."""
    return [(where, secret) for where, text in told for secret in secrets if secret in text]


@pytest.fixture
def searched(caplog):
    """Provokes an error, and searches what comes of it."""
    caplog.set_level(logging.DEBUG)

    def searched(kind, act, *objects):
        caplog.clear()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            with pytest.raises(kind) as caught:
                act()
        error = caught.value
        told = [
            *told_by(error),
            ("log", caplog.text + repr([record.__dict__ for record in caplog.records if record.name.startswith("agent")])),
            ("warnings", repr([str(each.message) for each in warned])),
            ("threads", repr(threading.enumerate())),
            *((f"repr of {type(each).__name__}", f"{each!r} {each}") for each in objects),
        ]
        assert leaks(told, ID, VALUE, PASSWORD) == []
        assert leaks(variables_of(error), PASSWORD) == []
        return error

    return searched


class Typed(BaseModel):
    x: int = 0

    @field_validator("x")
    @classmethod
    def small(cls, x):
        if x > 5:
            raise ValueError(f"{VALUE} is too much")
        return x


def conflict(gantry, other):
    @gantry.with_memory
    def tool(memory):
        memory["x"] = VALUE
        with other.independent(), other.memory() as theirs:
            theirs["x"] = VALUE + "!"

    tool()


def merge_that_fails(gantry, other):
    @gantry.with_memory(merge={"x": lambda base, theirs, ours: object()})
    def tool(memory):
        memory["x"] = VALUE
        with other.independent(), other.memory() as theirs:
            theirs["x"] = VALUE + "!"

    tool()


def unstorable(gantry, other):
    gantry.with_memory(lambda memory: memory.update(x=[VALUE, {VALUE}, (VALUE, [object()])]))()


def lone_surrogate_beside_it(gantry, other):
    gantry.with_memory(lambda memory: memory.update(x=[VALUE + "\ud800", object()]))()


def too_deep(gantry, other):
    inner = VALUE
    for _ in range(300):
        inner = [inner]
    gantry.with_memory(lambda memory: memory.update(x=inner))()


def too_large(gantry, other):
    gantry.with_memory(lambda memory: memory.update(x=VALUE * 200_000))()


def of_another(gantry, other):
    with gantry.session(f"{ID}-session", user=f"{ID}-eve"):
        gantry.with_memory(lambda memory: memory.update(x=VALUE))()


def erased(gantry, other):
    def tool(memory):
        memory["x"] = VALUE
        other.forget("session")

    gantry.with_memory(tool)()


def read_only(gantry, other):
    gantry.with_memory(read_only=True)(lambda memory: memory.update(x=VALUE))()


def undeclared(gantry, other):
    gantry.with_memory(keys=("y",))(lambda memory: memory.update(x=VALUE))()


def unknown(gantry, other):
    gantry.with_memory(scope="conversation")(lambda memory: None)()


def invalid(gantry, other):
    with other.independent(), other.memory() as memory:
        memory["x"] = VALUE

    @gantry.with_memory
    def tool(memory: Typed):
        return memory

    tool()


def key_of_another_type(gantry, other):
    @gantry.with_session
    def tool(session: SyncSession):
        session.set((VALUE,), VALUE)

    tool()


def bad_default(gantry, other):
    gantry.with_memory(scope="user", default={"x": [VALUE, object()]})


WAYS = {
    conflict: MemoryConflictError,
    merge_that_fails: MemoryConflictError,
    unstorable: UnstorableValueError,
    lone_surrogate_beside_it: UnstorableValueError,
    too_deep: UnstorableValueError,
    too_large: MemoryTooLargeError,
    of_another: SessionOwnerError,
    erased: MemoryErasedError,
    read_only: ReadOnlyMemoryError,
    undeclared: UndeclaredKeyError,
    unknown: MissingIdentityError,
    invalid: MemoryValidationError,
    key_of_another_type: UnstorableValueError,
    bad_default: DeclarationError,
}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_no_error_of_a_call_tells_an_id_or_a_value(all_places, searched, way):
    for place in all_places:
        identity = {"session": f"{ID}-session", "user": f"{ID}-{uuid.uuid4().hex}"}
        events = []
        callbacks = {"on_commit": events.append, "on_conflict": events.append}
        with place.another(**identity, **callbacks) as gantry, place.another(**identity, **callbacks) as other:
            other.forget("session")
            with other.memory() as memory:
                memory.update(x="before", y=[VALUE])
            error = searched(WAYS[way], lambda: way(gantry, other), gantry, other)
            # A failing merge is somebody else's error, and the cause of ours.
            assert isinstance(error, StateError)
            other.forget("session")
        assert events
        assert ID not in repr(events)
        assert VALUE not in repr(events)


def test_nothing_that_a_call_works_with_describes_itself_by_an_id_or_a_value(all_places):
    seen = []
    for place in all_places[:1]:

        class Watching:
            clock = None

            def __init__(self, inner):
                self.inner = inner

            def _asked(self, message):
                answer = getattr(self.inner, type(message).__name__.lower())(message)
                seen.extend((message, answer, getattr(answer, "snapshots", ())))
                return answer

            load = commit = forget = list = lease = release = _asked

            def close(self):
                pass

        store = Watching(place.where)
        scopes = {"team": Scope(store=f"redis://:{PASSWORD}@127.0.0.1:1")}
        with Gantry(store, session=f"{ID}-s", user=f"{ID}-u", scopes=scopes) as gantry, gantry.session(f"{ID}-2") as who:

            @gantry.with_session
            @gantry.with_memory(exclusive=True)
            def tool(memory, session: SyncSession):
                memory.update(x=VALUE, y=[VALUE])
                seen.extend((session, session._unit, gantry, who))

            tool()
            blocks = gantry.session(f"{ID}-3"), gantry.memory(session=ID)
            with blocks[0], blocks[1]:
                seen.extend(blocks)
            seen.extend((scopes["team"], tool, gantry._wiring, gantry._wiring.settings))
    told = [(type(each).__name__, f"{each!r} {each}") for each in seen]
    assert len(told) > 12
    assert leaks(told, ID, VALUE, PASSWORD) == []


# What stores say.


def nobody_there():
    return f"127.0.0.1:{servers.free_port()}"


@contextlib.contextmanager
def saying(words):
    """The address of a server that answers whatever it is told with those words; None: with nothing."""
    ended = threading.Event()

    def talk(client):
        with client, contextlib.suppress(OSError):
            while not ended.is_set() and client.recv(4096):
                if words is not None:
                    client.sendall(words)

    def serve():
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                client.settimeout(5)
                threads.append(threading.Thread(target=talk, args=(client,)))
                threads[-1].start()

    threads = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads.append(threading.Thread(target=serve))
        threads[0].start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()
            listener.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


ECHO = f"-ERR {ID} {VALUE}\r\nERROR {ID} {VALUE}\r\n".encode()
SCHEMES = {
    "redis": "redis://ada:{password}@{address}/0?load_timeout=1&commit_timeout=1",
    "redis+cluster": "redis+cluster://ada:{password}@{address}?load_timeout=1&commit_timeout=1",
    "postgresql": "postgresql://ada:{password}@{address}/db?load_timeout=1&commit_timeout=1",
    "memcached": "memcached://ada:{password}@{address}?load_timeout=1&commit_timeout=1",
}


@pytest.mark.parametrize("caller", ["sync", "asyncio"])
@pytest.mark.parametrize("fault", ["refused", "silent", "rubbish", "closed"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_error_of_a_store_tells_a_password_an_id_or_a_value(scheme, fault, caller, searched):
    with contextlib.ExitStack() as stack:
        if fault == "refused":
            address = nobody_there()
        else:
            address = stack.enter_context(saying({"silent": None, "rubbish": ECHO, "closed": b""}[fault]))
        url = SCHEMES[scheme].format(password=PASSWORD, address=address)
        gantry = stack.enter_context(Gantry(url, session=f"{ID}-s", user=f"{ID}-u"))

        @gantry.with_memory
        async def tool(memory):
            memory["x"] = VALUE

        def act():
            if caller == "asyncio":
                asyncio.run(tool())
            else:
                with gantry.memory() as memory:
                    memory["x"] = VALUE

        error = searched(StoreError, act, gantry, gantry._wiring.settings.bridge, gantry._wiring.settings.bridge.store)
        assert error.committed is False


@contextlib.contextmanager
def refusing_redis(folder, scheme="redis", user=""):
    with servers.started("redis_8", password=True) as server:
        yield f"{scheme}://{user}:{PASSWORD}@{server.host}:{server.port}?load_timeout=1"


@contextlib.contextmanager
def behind_tls(folder, url):
    """A Redis that speaks TLS, with a certificate that nobody knows, at *url*."""
    with encrypted(servers.redis_8().port, folder) as (port, certificate):
        yield url.format(password=PASSWORD, port=port, certificate=certificate)


@contextlib.contextmanager
def refusing_memcached(folder):
    with guarded_memcached() as address:
        yield f"memcached://ada:{PASSWORD}@{address}"


@contextlib.contextmanager
def shared(folder, make, scheme, options=""):
    """A server that knows no ada, or no TLS."""
    server = make()
    database = "/postgres" if scheme == "postgresql" else ""
    yield f"{scheme}://ada:{PASSWORD}@{server.host}:{server.port}{database}{options}"


@contextlib.contextmanager
def refusing_postgresql(folder, options=""):
    yield servers.postgresql().password_url.replace(servers.PASSWORD, PASSWORD) + options


TLS = "rediss://ada:{password}@"
#: Who turns callers down, and in what words.
REFUSALS = {
    "redis, password": (refusing_redis, {}, "refused the user or the password"),
    "redis, user": (refusing_redis, {"user": "ada"}, "refused the user or the password"),
    "redis cluster, password": (refusing_redis, {"scheme": "redis+cluster"}, "refused the user or the password"),
    "redis, no TLS there": (
        shared,
        {"make": servers.redis_8, "scheme": "rediss", "options": "?load_timeout=1"},
        "no connection",
    ),
    "redis, no TLS here": (behind_tls, {"url": "redis://ada:{password}@localhost:{port}"}, ""),
    "redis, unknown certificate": (behind_tls, {"url": TLS + "localhost:{port}"}, "ssl_ca_certs"),
    "redis, certificate of another host": (
        behind_tls,
        {"url": TLS + "127.0.0.1:{port}?ssl_ca_certs={certificate}"},
        "ssl_ca_certs",
    ),
    "postgresql, password": (refusing_postgresql, {}, "password authentication failed"),
    "postgresql, no TLS there": (refusing_postgresql, {"options": "?sslmode=require"}, "SSL"),
    "postgresql, unknown host": (refusing_postgresql, {"options": "?sslmode=verify-full&sslrootcert=system"}, "SSL"),
    "memcached, password": (refusing_memcached, {}, "password"),
    "memcached, none asked for": (shared, {"make": servers.memcached, "scheme": "memcached"}, "asks for no password"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_nobody_who_is_turned_down_is_told_a_password(refusal, tmp_path, searched):
    where, options, words = REFUSALS[refusal]
    with where(tmp_path, **options) as url, Gantry(url, session=f"{ID}-s", user=f"{ID}-u") as gantry:

        @gantry.with_memory
        def tool(memory):
            memory["x"] = VALUE

        @gantry.with_memory
        async def atool(memory):
            memory["x"] = VALUE

        bridge = gantry._wiring.settings.bridge
        for act in (tool, lambda: asyncio.run(atool())):
            error = searched(StoreError, act, gantry, bridge, bridge.store)
            assert words in str(error)
            assert error.committed is False


_DAMAGED = b"\x01\xd9\xff" + VALUE.encode()


def corrupted(place, namespace):
    """Damage what a store has of a key of a namespace."""
    if place.name == "sqlite":
        with contextlib.closing(sqlite3.connect(place.where.removeprefix("sqlite:///"))) as database, database:
            words = "UPDATE entry SET record = ? WHERE digest = ? AND key <> 0"
            assert database.execute(words, (_DAMAGED, namespace.digest)).rowcount == 1
    elif place.name == "file":
        path = pathlib.Path(place.where.removeprefix("file://"), namespace.digest.hex())
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    elif place.name == "redis-8":
        with redis.Redis.from_url(place.where) as client:
            (key,) = [key for key in client.scan_iter(f"*{namespace.digest.hex()}") if client.type(key) == b"hash"]
            client.hset(key, b"kx", client.hget(key, b"kx")[:25] + _DAMAGED)
    else:
        with psycopg.connect(place.where, autocommit=True) as connection:
            words = "UPDATE agent_gantry_state.entry SET record = %s WHERE digest = %s"
            assert connection.execute(words, (_DAMAGED, namespace.digest)).rowcount == 1


@pytest.mark.parametrize("name", ["file", "sqlite", "redis-8", "postgresql"])
def test_no_error_about_damaged_bytes_tells_what_is_in_them(name, all_places, searched):
    (place,) = [each for each in all_places if each.name == name]
    who = f"{ID}-{uuid.uuid4().hex}"
    with place.gantry.memory("user", user=who) as memory:
        memory["x"] = [VALUE]
        namespace = memory._namespace
    corrupted(place, namespace)
    with place.another(user=who) as gantry:

        def act():
            with gantry.memory("user") as memory:
                dict(memory)

        searched(CorruptEntryError, act, gantry)
        gantry.forget("user")


def extension(code, data):
    return b"\x01\xc7" + bytes([len(data), code]) + data


RECORDS = {
    "text": _DAMAGED,
    "no image": b"\x01\xaa" + VALUE.encode(),
    "text with a bad byte": b"\x01\xab" + VALUE.encode() + b"\xff",
    "lone surrogates that are none": extension(12, VALUE.encode() + b"\xff"),
    "date": extension(6, VALUE.encode()),
    "number": extension(9, VALUE.encode()),
    "path": extension(13, VALUE.encode()),
    "tuple": extension(1, b"\xab" + VALUE.encode() + b"\xff"),
    "set": extension(2, b"\x91\xc4\x0c\x91" + b"\xaa" + VALUE.encode()),
    "pairs": extension(11, b"\x91\x92\xc4\x0c\x91\xaa" + VALUE.encode() + b"\xc4\x01\x01"),
    "unknown": extension(77, VALUE.encode()),
    "more behind it": b"\x01\xaa" + VALUE.encode() + b"\x01",
}


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_no_error_of_the_decoder_is_chained_to_what_it_was_reading(record, searched):
    body = record[1:]
    image = b"\x01" + zlib.crc32(body).to_bytes(4, "big") + body
    if record is not RECORDS["no image"]:
        searched(CorruptEntryError, lambda: codec.decode(record))
        searched(CorruptEntryError, lambda: rows.values_of(["x", "y"], [record, b"\x01\x01"], "a store"))
    searched(CorruptEntryError, lambda: whole.read_image(image))
    searched(CorruptEntryError, lambda: whole.read_image(image[:-1] + b"\xfe"))
    searched(CorruptEntryError, lambda: rows.to_text(VALUE.encode() + b"\xff", "a store"))
    searched(CorruptEntryError, lambda: rows.namespace_of(b"\0\0\0\0\0\0\0\x0b" + VALUE.encode() + b"\xff", "a store"))
