"""What the first users of the stores behind a network came upon."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
import threading

import pytest
import servers

from agent_gantry_state import Gantry, StateError, StoreError, StoreURLError

_SECRET = "hunter2"

_NEVER_CLOSED = """
import asyncio, sys, threading
from agent_gantry_state import Gantry

gantry = Gantry(sys.argv[1], session="s", app="never closed")


@gantry.with_memory
def count(memory):
    memory.add("n", 1)


@gantry.with_memory
async def acount(memory):
    memory.add("n", 1)


if sys.argv[2] == "blocking":
    count()
elif sys.argv[2] == "event loop that stays open":
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(acount())
else:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    asyncio.run_coroutine_threadsafe(acount(), loop).result()
"""


@pytest.mark.parametrize("caller", ["blocking", "event loop that stays open", "event loop of a thread"])
@pytest.mark.parametrize("server", ["redis_8", "redis_cluster", "memcached", "postgresql"])
def test_program_that_closes_nothing_ends_without_a_word(server, caller):
    url = getattr(servers, server)().url
    program = [sys.executable, "-W", "error", "-c", _NEVER_CLOSED, url, caller]

    ended = subprocess.run(program, capture_output=True, text=True, timeout=60)

    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("url", ["postgresql://", "postgresql:///state", "postgres:///state?host=/run/postgresql"])
def test_postgresql_url_without_a_host_is_libpqs_default_place(url):
    Gantry(url, session="s").close()


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:{_SECRET}%@host/db",
        f"postgresql://u:{_SECRET}%zz@host/db",
        f"postgresql://u:{_SECRET}%00@host/db",
    ],
)
def test_no_error_around_one_of_a_postgresql_url_holds_the_password(url):
    with pytest.raises(StoreURLError) as caught:
        Gantry(url, session="s")

    assert _SECRET not in "".join(_shown(caught.value))


def _shown(error):
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        yield f"{error!r} {error}"
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("name", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
def test_tls_file_that_cannot_be_a_name_is_a_url_error(name):
    with pytest.raises(StoreURLError):
        Gantry(f"rediss://127.0.0.1?{name}=%00")


def test_key_without_its_certificate_is_refused():
    with pytest.raises(StoreURLError, match="ssl_certfile"):
        Gantry("rediss://127.0.0.1?ssl_keyfile=client.key")


@pytest.fixture
def web_server():
    """The port of a server that is none of ours."""
    with socket.create_server((servers.HOST, 0)) as listener:

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        # Closing alone does not wake who accepts.
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster", "memcached"])
def test_another_kind_of_server_is_called_that(web_server, scheme):
    with Gantry(f"{scheme}://127.0.0.1:{web_server}", session="s") as gantry, pytest.raises(StoreError) as caught:
        with gantry.memory():
            pass

    assert "is no " in str(caught.value)
    assert not caught.value.transient


@pytest.mark.parametrize("scheme", ["redis", "memcached", "postgresql"])
@pytest.mark.parametrize("caller", ["blocking", "event loop"])
def test_unreachable_server_is_named_and_so_is_why(scheme, caller):
    port = servers.free_port()
    look = _look if caller == "blocking" else _look_on_loop

    with Gantry(f"{scheme}://127.0.0.1:{port}", session="s") as gantry, pytest.raises(StateError) as caught:
        look(gantry)

    assert str(port) in str(caught.value)
    assert "Connection refused" in str(caught.value)


def _look(gantry):
    with gantry.memory():
        pass


def _look_on_loop(gantry):
    async def look():
        async with gantry.memory():
            pass

    asyncio.run(look())


@pytest.mark.parametrize("server", ["redis_8", "postgresql"])
def test_wrong_password_is_no_passing_trouble(server, caplog):
    caplog.set_level(logging.DEBUG)
    if server == "postgresql":
        url = servers.postgresql().password_url.replace(servers.PASSWORD, _SECRET)
    else:
        url = servers.redis_8().url.replace("//", f"//:{_SECRET}@")

    with Gantry(url, session="s") as gantry, pytest.raises(StoreError) as caught:
        with gantry.memory():
            pass

    assert not caught.value.transient
    assert _SECRET not in caplog.text


def test_url_in_place_of_an_address_is_a_clear_error():
    from agent_gantry_state.stores import RedisStore

    with pytest.raises(TypeError, match="client="):
        RedisStore("redis://127.0.0.1")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["pool", "apool"])
def test_pool_of_another_kind_is_refused_at_once(name):
    from agent_gantry_state.stores import PostgreSQLStore

    with pytest.raises(TypeError, match=name):
        PostgreSQLStore(**{name: object()})


def test_class_of_a_store_is_no_store():
    from agent_gantry_state.stores import FileStore

    with pytest.raises(TypeError, match="class"):
        Gantry(FileStore, session="s")


def test_directory_in_place_of_a_database_is_called_that(tmp_path):
    with Gantry(f"sqlite:///{tmp_path}", session="s") as gantry, pytest.raises(StoreError, match="directory") as caught:
        with gantry.memory():
            pass

    assert not caught.value.transient
