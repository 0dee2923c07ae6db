"""Traces and metrics for OpenTelemetry, of gantries that are told to: `instrument` puts a bridge before that to each store.

There is one span for each message that goes to a store and is about memories, under whatever span its caller is in, and
current while the store answers, so that those of an instrumented driver are below it. Of keys and values there is nothing in
any of it but how many and how large they are; errors are there by their type, for the text of one names keys.
"""

from __future__ import annotations

import contextlib
import hmac
import time
from collections.abc import Awaitable, Iterable
from contextvars import Token
from typing import TYPE_CHECKING, Any, Final, TypeVar

from agent_gantry_state import __version__
from agent_gantry_state.bridge import Bridge, Runs
from agent_gantry_state.errors import (
    CorruptEntryError,
    MemoryConflictError,
    NotAtomicError,
    PartialCommitError,
    StateError,
    StoreError,
)
from agent_gantry_state.gantry import Stateful
from agent_gantry_state.limits import size_of
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.nesting import leave
from agent_gantry_state.notes import FOUND, LOG, Counters, Found, fields
from agent_gantry_state.several import Several
from agent_gantry_state.stores.protocol import Commit, Forget, Load, Loaded, Moved, WouldBlock

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter, MeterProvider
    from opentelemetry.trace import Span, Tracer, TracerProvider

__all__ = ["instrument", "uninstrument"]

T = TypeVar("T")

_OPERATIONS: dict[type[Any], str] = {Load: "load", Commit: "commit", Forget: "forget"}
#: What `db.system.name` says of our stores; of any other it is the name of its class.
_SYSTEMS: Final = {
    "MemoryStore": "memory",
    "FileStore": "file",
    "SQLiteStore": "sqlite",
    "RedisStore": "redis",
    "PostgreSQLStore": "postgresql",
    "MemcachedStore": "memcached",
}
_SYSTEM, _OPERATION, _BATCH, _ERROR = "db.system.name", "db.operation.name", "db.operation.batch.size", "error.type"
_SCOPE, _OUTCOME, _BYTES = "agent_gantry_state.scope", "agent_gantry_state.outcome", "agent_gantry_state.bytes"
_LOADED, _WRITTEN = "agent_gantry_state.keys.loaded", "agent_gantry_state.keys.written"
_DELETED, _HASHES = "agent_gantry_state.keys.deleted", "agent_gantry_state.id.hash"
_REASON = "agent_gantry_state.reason"

_COUNTERS: Final = {
    "conflicts": "Commits that failed, or whose call ran again, because others had changed the same keys",
    "merges": "Commits that found others quicker and were merged with theirs",
    "retries": "Calls that ran again after a conflict, and commits that were sent again without an answer",
    "evictions": "Memories that a full store dropped",
    "expired": "Keys that a store left out of an answer because their time was over",
    "corrupt": "Loads and commits that met an entry which cannot be read",
    "refused": "Loads and commits that were refused by a rule: an owner, a limit, a value that cannot be stored",
}


def instrument(
    gantry: Stateful,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    hash_ids: str | bytes | None = None,
) -> bool:
    """Have a gantry report its loads and commits to OpenTelemetry, from the next call on. Again: with these arguments.

    Without the package ``opentelemetry-api`` (the extra ``otel``) it does nothing, and says so in the log. Without providers
    everything is thrown away by OpenTelemetry itself.

    Args:
        gantry: A `Gantry` or an `AgentGantry`.
        tracer_provider: By default the global one.
        meter_provider: By default the global one.
        hash_ids: A secret of yours, by which spans have a keyed hash (HMAC-SHA256, 32 hex digits) of the address of each
            memory: the same for the same memory, and of no use to whoever has not got the secret. None: nothing of ids.

    Returns:
        Whether the gantry reports anything.

    Raises:
        TypeError: *gantry* is none, or *hash_ids* is no text and no bytes.
        ValueError: *hash_ids* is empty.
    """
    wiring = _wiring_of(gantry, "instrument")
    secret = _secret(hash_ids)
    try:
        from opentelemetry import metrics, trace
    except ImportError:
        LOG.warning(
            "telemetry: the package opentelemetry-api is not installed, so that nothing is reported: "
            "pip install agent-gantry-state[otel]",
            extra=fields("telemetry_missing"),
        )
        return False
    tracer = trace.get_tracer("agent_gantry_state", __version__, tracer_provider)
    meter = metrics.get_meter("agent_gantry_state", __version__, meter_provider)
    wiring.trace(_Telemetry(trace, tracer, meter, secret).around)
    return True


def uninstrument(gantry: Stateful) -> None:
    """Have a gantry report nothing any more, from the next call on.

    Args:
        gantry: A `Gantry` or an `AgentGantry`.

    Raises:
        TypeError: *gantry* is none.
    """
    _wiring_of(gantry, "uninstrument").trace(None)


def _wiring_of(gantry: Any, where: str) -> Any:
    if not isinstance(gantry, Stateful):
        raise TypeError(f"{where}: gantry must be a Gantry or an AgentGantry, not {type(gantry).__name__}")
    return gantry._wiring


def _secret(hash_ids: Any) -> bytes | None:
    if hash_ids is None:
        return None
    if not isinstance(hash_ids, (str, bytes)):
        raise TypeError(f"instrument: hash_ids must be a secret text or bytes, or None, not {type(hash_ids).__name__}")
    if not hash_ids:
        raise ValueError("instrument: hash_ids must not be empty: a hash without a secret can be guessed from the id")
    return hash_ids.encode("utf-8", "surrogatepass") if isinstance(hash_ids, str) else hash_ids


class _Telemetry:
    """What one gantry reports to."""

    def __init__(self, trace: Any, tracer: Tracer, meter: Meter, secret: bytes | None) -> None:
        self.trace = trace
        self.tracer = tracer
        self._secret = secret
        self._counts = {
            name: meter.create_counter(f"agent_gantry_state.{name}", unit="1", description=description)
            for name, description in _COUNTERS.items()
        }

    def around(self, bridge: Bridge) -> Bridge:
        """*bridge*, or each of those it is made of, with telemetry."""
        if not isinstance(bridge, Several):
            return _Traced(bridge, self)
        traced: dict[int, Bridge] = {id(each): _Traced(each, self) for each in bridge.bridges}
        elsewhere = {scope: traced[id(each)] for scope, each in bridge.elsewhere.items()}
        return Several(traced[id(bridge.main)], elsewhere, bridge.partial)

    def hashes(self, namespaces: Iterable[Namespace]) -> str | None:
        """A hash of each namespace, if that is wanted."""
        secret = self._secret
        if secret is None:
            return None
        return ",".join([hmac.new(secret, each.address, "sha256").hexdigest()[:32] for each in namespaces])

    def count(self, name: str, attributes: dict[str, str], amount: int = 1) -> None:
        """Add to a counter."""
        try:
            self._counts[name].add(amount, attributes)
        except Exception:  # noqa: BLE001 - of anybody's provider
            _log_failure()

    # What a unit of work counts.

    def merged(self, scopes: Iterable[str]) -> None:
        self.count("merges", {_SCOPE: _joined(scopes)})

    def rerun(self) -> None:
        self.count("retries", {_REASON: "conflict"})

    def resent(self, error: BaseException) -> None:
        self.count("retries", {_REASON: "unanswered", _ERROR: type(error).__qualname__})

    def failed(self, error: BaseException) -> None:
        cause = error.__cause__ if isinstance(error, PartialCommitError) else error
        if isinstance(cause, MemoryConflictError):
            self.count("conflicts", {_SCOPE: _joined(cause.by_scope)})
        elif isinstance(cause, NotAtomicError) or (
            isinstance(cause, StateError) and not isinstance(cause, (StoreError, CorruptEntryError))
        ):
            self.count("refused", {_ERROR: type(cause).__qualname__})


class _Traced(Runs):
    """A bridge whose messages are reported."""

    def __init__(self, inner: Bridge, telemetry: _Telemetry) -> None:
        self._inner = inner
        self._telemetry = telemetry
        self.counters: Counters | None = telemetry
        self.store: Any = inner.store
        self.resendable = inner.resendable
        self.load_timeout = inner.load_timeout
        self.commit_timeout = inner.commit_timeout
        self._system = _system_of(inner.store)

    def _operation(self, request: Any, attempted: bool = False) -> _Operation:
        return _Operation(self._telemetry, self._system, request, attempted)

    def perform(self, request: Any) -> Any:
        if type(request) not in _OPERATIONS:
            return self._inner.perform(request)
        with self._operation(request) as operation:
            operation.answer = answer = self._inner.perform(request)
        return answer

    async def aperform(self, request: Any) -> Any:
        if type(request) not in _OPERATIONS:
            return await self._inner.aperform(request)
        with self._operation(request) as operation:
            operation.answer = answer = await self._inner.aperform(request)
        return answer

    def ask_whole(self, request: Any) -> Awaitable[Any]:
        # Of what is reported nothing is asked to the end: that is for leases.
        return self.aperform(request) if type(request) in _OPERATIONS else self._inner.ask_whole(request)

    def attempt(self, request: Any) -> Any:
        if type(request) not in _OPERATIONS:
            return self._inner.attempt(request)
        with self._operation(request, attempted=True) as operation:
            operation.answer = answer = self._inner.attempt(request)
        return answer

    def close(self) -> None:
        self._inner.close()

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Operation:
    """One message on its way to a store and back.

    Args:
        telemetry: Where it is reported.
        system: Name of the store's system.
        request: The message.
        attempted: Whether it may turn out that it has to be asked otherwise; then there is no span of it.
    """

    __slots__ = (
        "_attempted",
        "_found",
        "_inside",
        "_request",
        "_scope",
        "_span",
        "_start",
        "_system",
        "_telemetry",
        "answer",
    )

    _span: Span
    _inside: Any
    _found: tuple[Found, Token[Found | None]]

    def __init__(self, telemetry: _Telemetry, system: str, request: Any, attempted: bool) -> None:
        self._telemetry = telemetry
        self._system = system
        self._request = request
        self._attempted = attempted
        self.answer: Any = None

    def __enter__(self) -> _Operation:
        self._scope = _joined(each.scope for each in _namespaces(self._request))
        found = Found()
        self._found = found, FOUND.set(found)
        self._start = time.time_ns()
        if self._attempted:
            self._inside = contextlib.nullcontext()
        else:
            self._span = self._started()
            # Not by the text of an error, which may name keys.
            self._inside = self._telemetry.trace.use_span(
                self._span, end_on_exit=False, record_exception=False, set_status_on_exception=False
            )
        self._inside.__enter__()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._inside.__exit__(kind, error, traceback)
        found, token = self._found
        leave(token)
        if isinstance(error, WouldBlock):
            return
        if self._attempted:
            self._span = self._started()
        self._count(found, error)
        try:
            if self._span.is_recording():
                self._describe(error)
            self._span.end()
        except Exception:  # noqa: BLE001 - of anybody's provider
            _log_failure()

    def _started(self) -> Span:
        try:
            return self._start_span()
        except Exception:  # noqa: BLE001 - of anybody's provider
            _log_failure()
            return self._telemetry.trace.INVALID_SPAN  # type: ignore[no-any-return]

    def _start_span(self) -> Span:
        telemetry, operation = self._telemetry, _OPERATIONS[type(self._request)]
        kinds = telemetry.trace.SpanKind
        return telemetry.tracer.start_span(
            f"{operation} {self._scope}",
            kind=kinds.INTERNAL if self._system == "memory" else kinds.CLIENT,
            attributes={_SYSTEM: self._system, _OPERATION: operation, _SCOPE: self._scope},
            start_time=self._start,
        )

    def _count(self, found: Found, error: BaseException | None) -> None:
        count, here = self._telemetry.count, {_SYSTEM: self._system, _SCOPE: self._scope}
        if found.expired:
            count("expired", here, found.expired)
        for scope in found.evicted:
            count("evictions", {**here, _SCOPE: scope})
        if isinstance(error, CorruptEntryError):
            count("corrupt", here)

    def _describe(self, error: BaseException | None) -> None:
        span, request, answer = self._span, self._request, self.answer
        namespaces = list(_namespaces(request))
        if len(namespaces) > 1:
            span.set_attribute(_BATCH, len(namespaces))
        if (hashes := self._telemetry.hashes(namespaces)) is not None:
            span.set_attribute(_HASHES, hashes)
        if isinstance(request, Commit):
            puts = [(key, put) for change in request.changes for key, put in change.puts.items()]
            span.set_attribute(_WRITTEN, len(puts))
            span.set_attribute(_DELETED, sum([len(change.deletes) for change in request.changes]))
            span.set_attribute(
                _BYTES, sum([len(key.encode("utf-8", "surrogatepass")) + len(put.packed) for key, put in puts])
            )
        elif isinstance(answer, Loaded):
            span.set_attribute(_LOADED, sum([len(each.values) for each in answer.snapshots]))
            span.set_attribute(_BYTES, sum([size_of(each) for each in answer.snapshots]))
        span.set_attribute(_OUTCOME, _outcome(request, answer, error))
        if error is not None:
            span.set_attribute(_ERROR, type(error).__qualname__)
            span.set_status(self._telemetry.trace.StatusCode.ERROR)


def _log_failure() -> None:
    LOG.exception(
        "telemetry could not be reported; what it was of has happened all the same", extra=fields("telemetry_failed")
    )


def _outcome(request: Any, answer: Any, error: BaseException | None) -> str:
    if error is None:
        return "moved" if isinstance(answer, Moved) else _DONE[type(request)]
    surely = isinstance(request, Load) or (isinstance(error, StateError) and error.committed is False)
    return "failed" if surely else "unknown"


_DONE: dict[type[Any], str] = {Load: "loaded", Commit: "committed", Forget: "forgotten"}


def _namespaces(request: Any) -> Iterable[Namespace]:
    if isinstance(request, Commit):
        return [change.namespace for change in request.changes]
    return request.namespaces  # type: ignore[no-any-return]


def _joined(scopes: Iterable[str]) -> str:
    """Scopes as one text, each once, in one order for the same ones."""
    return ",".join(sorted(set(scopes)))


def _system_of(store: Any) -> str:
    names = [each.__name__ for each in type(store).__mro__]
    return next((_SYSTEMS[name] for name in names if name in _SYSTEMS), names[0])
