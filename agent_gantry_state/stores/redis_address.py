"""Where a Redis is and how it lets one in, and how a URL says so."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

from agent_gantry_state.errors import StoreURLError
from agent_gantry_state.stores.options import flag, number, one_of, text
from agent_gantry_state.stores.redis_routes import ClusterRoute, Direct, Route, SentinelRoute
from agent_gantry_state.stores.redis_wire import Access, Node
from agent_gantry_state.stores.urls import StoreURL

__all__ = ["Address", "address_from"]

PORT: Final = 6379
SENTINEL_PORT: Final = 26379


@dataclass(frozen=True, slots=True)
class Address:
    """Where a Redis is, and how it lets one in.

    Attributes:
        nodes: Its host and port; of a cluster any of its servers; of a Sentinel's service its Sentinels.
        access: How the servers let one in.
        cluster: Whether it is a cluster.
        service: Name of the service whose master the Sentinels know; None if these are no Sentinels.
        sentinel_access: How the Sentinels let one in.
    """

    nodes: tuple[Node, ...] = (Node("localhost", PORT),)
    access: Access = field(default=Access(), repr=False)
    cluster: bool = False
    service: str | None = None
    sentinel_access: Access = field(default=Access(), repr=False)

    def access_of(self, node: Node) -> Access:
        """How *node* lets one in."""
        return self.sentinel_access if node.watches else self.access

    def route(self, within: float) -> Route:
        """The way to it.

        Args:
            within: Seconds that a server has that is asked where another one is.
        """
        if self.cluster:
            return ClusterRoute(self.nodes, within)
        if self.service is not None:
            return SentinelRoute(self.nodes, self.service, within)
        return Direct(self.nodes[0])


def address_from(url: StoreURL, known: dict[str, Callable[[str], Any]]) -> tuple[Address, dict[str, Any]]:
    """What a URL says: the address, and options of the store.

    Args:
        url: The URL.
        known: The options of the store.

    Raises:
        StoreURLError: It cannot be understood.
    """
    scheme = url.parts.scheme
    base, _, kind = scheme.partition("+")
    encrypted = base in ("rediss", "valkeys")
    known = dict(known)
    if encrypted:
        known.update(ssl_ca_certs=text, ssl_certfile=text, ssl_keyfile=text)
        known.update(ssl_cert_reqs=one_of("required", "none"), ssl_check_hostname=flag)
    if kind == "sentinel":
        known.update(db=number, sentinel_username=text, sentinel_password=text)
    options = url.read(known)
    username, password, nodes = _authority(url, kind == "sentinel")
    path = unquote(url.parts.path.strip("/"))
    service, db = None, 0
    if kind == "sentinel":
        service, db = path, options.pop("db", 0)
        if not service:
            raise StoreURLError(f"{scheme}:// needs the name of a service: write {scheme}://host:{SENTINEL_PORT}/service")
    elif path:
        if not path.isascii() or not path.isdigit() or (kind == "cluster" and int(path)):
            known_as = "a cluster has database 0 only" if kind == "cluster" else f"write {scheme}://host:{PORT}/0"
            raise StoreURLError(f"{scheme}://: the path is the number of a database: {known_as}")
        db = int(path)
    if len(nodes) > 1 and not kind:
        raise StoreURLError(f"{scheme}:// takes one host; several are for redis+cluster:// and redis+sentinel://")
    tls = _tls(scheme, options) if encrypted else None
    sentinel_access = Access(options.pop("sentinel_username", None), options.pop("sentinel_password", None))
    address = Address(nodes, Access(username, password, db, tls), kind == "cluster", service, sentinel_access)
    return address, options


def _authority(url: StoreURL, watches: bool) -> tuple[str | None, str | None, tuple[Node, ...]]:
    """User, password and servers."""
    scheme = url.parts.scheme
    user_info, _, hosts = url.parts.netloc.rpartition("@")
    username, _, password = user_info.partition(":")
    if username and not password:
        raise StoreURLError(f"{scheme}://: a user needs a password; a password alone is written {scheme}://:password@host")
    nodes = []
    for each in hosts.split(","):
        host, port = _host_and_port(scheme, each, SENTINEL_PORT if watches else PORT)
        nodes.append(Node(host, port, watches))
    return unquote(username) or None, unquote(password) or None, tuple(nodes)


def _host_and_port(scheme: str, text: str, port: int) -> tuple[str, int]:
    host, colon, digits = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host = text
    elif digits.isascii() and digits.isdigit() and 0 < int(digits) < 65536:
        port = int(digits)
    elif digits:
        raise StoreURLError(f"{scheme}://: a port is a number up to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return unquote(host) or "localhost", port


def _tls(scheme: str, options: dict[str, Any]) -> ssl.SSLContext:
    certificates, certificate, key = (options.pop(name, None) for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"))
    if key is not None and certificate is None:
        raise StoreURLError(f"{scheme}://: ssl_keyfile belongs to a certificate: give ssl_certfile as well")
    verify, check = options.pop("ssl_cert_reqs", "required") == "required", options.pop("ssl_check_hostname", True)
    try:
        context = ssl.create_default_context(cafile=certificates)
        context.check_hostname = verify and check
        context.verify_mode = ssl.CERT_REQUIRED if verify else ssl.CERT_NONE
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except (OSError, ValueError):
        raise StoreURLError(
            f"{scheme}://: a file of ssl_ca_certs, ssl_certfile or ssl_keyfile cannot be read as a certificate or key"
        ) from None
    return context
