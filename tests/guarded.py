"""Servers that look at who comes: a memcached that asks for a password, a port that speaks TLS."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import HOST, PASSWORD, free_port


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[Path]:
    """A memcached with these arguments, and its directory, which stands in them as {}."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o777)
    user = ["-u", "nobody"] if os.getuid() == 0 else []
    process = subprocess.Popen(
        ["memcached", *user, *[each.replace("{}", str(directory)) for each in arguments]], cwd=directory
    )
    try:
        yield directory
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(directory)


@contextlib.contextmanager
def guarded_memcached() -> Iterator[str]:
    """The address of a memcached that knows ada, and her PASSWORD."""
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(f"ada:{PASSWORD}\n")
        file.flush()
        Path(file.name).chmod(0o644)
        port = free_port()
        with running("-l", HOST, "-p", str(port), "-U", "0", "-Y", file.name):
            deadline = time.monotonic() + 10
            while True:
                try:
                    socket.create_connection((HOST, port), 1).close()
                    break
                except OSError:
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
            yield f"{HOST}:{port}"


@contextlib.contextmanager
def encrypted(target: int, folder: Path) -> Iterator[tuple[int, Path]]:
    """A port that speaks TLS as localhost and passes on to *target*, and the file of its certificate."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    made = subprocess.run(
        [
            *"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -days 2".split(),
            *("-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)),
        ],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("openssl makes no certificate here")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def serve(client: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(client, server_side=True) as tls:
            with socket.create_connection((HOST, target)) as server:
                threading.Thread(target=_pump, args=(tls, server), daemon=True).start()
                while reply := server.recv(1 << 20):
                    tls.sendall(reply)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server((HOST, 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1], certificate


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 20):
            sink.sendall(data)
