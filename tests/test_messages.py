"""What errors say: provoked one by one, as somebody in a hurry meets them, and as a model is shown them."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import io
import pathlib
import socketserver
import threading
import warnings

import pydantic
import pytest
from support import Blocking, committed

from agent_gantry_state import Gantry, Namespace, Scope, StateWarning, SyncSession, errors, merge
from agent_gantry_state.codec import pack, unpack
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.stores.network import driver

#: Stands in ids, values, passwords and paths, and is to be seen nowhere.
SECRET = "hunter2"
#: No message is longer, but those that list what is known of a URL.
LONGEST = 480


class Whole(pydantic.BaseModel):
    count: int = 0


def gantry(*args, **options):
    options.setdefault("session", f"session-{SECRET}")
    options.setdefault("user", f"user-{SECRET}")
    return Gantry(*args, **options)


def stranger(do):
    """Do something as a call that knows of no other."""
    return contextvars.Context().run(do)


def conflicting(gantry, put, meanwhile, **options):
    with gantry.memory(**options) as memory:
        memory.update(put)

        def change():
            with gantry.memory() as there:
                there.update(meanwhile)

        stranger(change)


# One for each class. Each gives what raises, and the words that tell what was wrong, where, and what to do.


def call_ended():
    kept = []
    made = gantry()

    @made.with_session
    def tool(session):
        kept.append(session)

    tool()
    kept[0].get(SECRET)


def codec_error():
    unpack(pack([1, 2])[:-1] + b"\xc1")


def declaration():
    @gantry().with_memory
    def tool(memmory):
        pass


def exclusive_timeout():
    made = gantry()

    @made.with_memory(exclusive=True)
    def tool(memory):
        pass

    @made.with_memory(exclusive=True)
    async def holder(memory):
        stranger(tool)

    asyncio.run(holder())


def further_scope():
    made = gantry()
    with made.memory("user") as memory:
        memory["a"] = SECRET

    @made.with_memory(scope=("session", "user"))
    def tool(memory):
        del memory["a"]

    tool()


def import_refused():
    gantry().admin.import_([f'{{"nothing": "{SECRET}"}}'])


def injected_argument():
    @gantry().with_memory
    def tool(memory):
        pass

    tool(memory={"a": SECRET})


def memory_conflict():
    made = gantry()
    conflicting(made, {"n": SECRET}, {"n": SECRET + "!"})


def memory_erased():
    made = gantry()
    with made.memory() as memory:
        memory["a"] = 1
    with made.memory() as memory:
        memory["a"] = SECRET
        stranger(lambda: made.forget("session"))


def memory_exists():
    made = gantry()
    with made.memory() as memory:
        memory["a"] = SECRET
    lines = list(made.admin.export())
    with made.memory() as memory:
        memory["a"] = SECRET + "!"
    made.admin.import_(lines)


def memory_not_found():
    gantry().admin.get(Namespace("session", SECRET), "a")


def memory_too_large():
    with gantry(scopes={"session": Scope(max_bytes=50)}).memory() as memory:
        memory["a"] = SECRET * 20


def memory_validation():
    made = gantry()

    @made.with_memory
    def tool(memory: Whole):
        memory.count = SECRET

    tool()


def missing_driver():
    with driver("redis"):
        import no_such_driver_is_installed  # noqa: F401


def missing_identity():
    with Gantry().memory():
        pass


def not_atomic():
    made = gantry(scopes={"user": "memory://"}, store=MemoryStore())

    @made.with_memory
    @made.with_memory(scope="user", into="theirs")
    def tool(memory, theirs):
        memory["a"] = theirs["a"] = SECRET

    tool()


def not_listable():
    pytest.importorskip("pymemcache")
    made = Gantry("memcached://127.0.0.1:1")
    try:
        list(made.admin.list())
    finally:
        made.close()


def orphaned():
    made, going, given_up = gantry(), threading.Event(), threading.Event()

    @made.with_memory
    def child(memory):
        memory["a"] = SECRET
        going.set()
        given_up.wait(10)

    @made.with_memory
    def parent(memory):
        failed = []
        context = contextvars.copy_context()

        def run():
            try:
                context.run(child)
            except errors.StateError as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        threads.append((thread, failed))
        going.wait(10)
        raise KeyError

    threads = []
    with pytest.raises(KeyError):
        parent()
    given_up.set()
    thread, failed = threads[0]
    thread.join(10)
    raise failed[0]


class _Full(Blocking):
    def commit(self, message, /):
        raise errors.StoreUnavailableError("there is no room")


def partial_commit():
    made = gantry(scopes={"user": _Full()}, store=MemoryStore(), partial_commits=True)

    @made.with_memory
    @made.with_memory(scope="user", into="theirs")
    def tool(memory, theirs):
        memory["a"] = theirs["a"] = SECRET

    tool()


def read_only():
    made = gantry()

    @made.with_memory(read_only=True)
    def tool(memory):
        memory["a"] = SECRET

    tool()


def resolver():
    def by_header(request):
        raise ValueError(SECRET)

    with gantry(resolvers=[by_header]).memory():
        pass


def session_owner():
    made = Gantry()
    with made.memory(session=SECRET, user=f"ada-{SECRET}") as memory:
        memory["a"] = 1
    with made.memory(session=SECRET, user=f"bob-{SECRET}"):
        pass


def store_closed():
    made = gantry()
    made.close()
    with made.memory():
        pass


def store_unavailable():
    made = gantry(f"sqlite:////no-such-{SECRET}/place/state.db")
    try:
        with made.memory():
            pass
    finally:
        made.close()


def store_url():
    Gantry(f"redis://user:{SECRET}@host:port")


def undeclared_key():
    made = gantry()

    @made.with_memory(keys=("cwd",))
    def tool(memory):
        memory["active"] = SECRET

    tool()


def unstorable_value():
    with gantry().memory() as memory:
        memory["plan"] = {"steps": [1, object()]}


PROVOKED = [
    (call_ended, errors.CallEndedError, ("session", "has ended", "gantry.memory")),
    (codec_error, errors.CorruptEntryError, ("stored entry", "damaged")),
    (declaration, errors.DeclarationError, ("'memory'", "memmory", "into='memmory'")),
    (exclusive_timeout, errors.ExclusiveTimeoutError, ("session memory", "to itself", "async")),
    (further_scope, errors.FurtherScopeError, ("session memory", "'a'", "user", "scope='user'")),
    (import_refused, errors.ImportRefusedError, ("line 1", "no export", "nothing")),
    (injected_argument, errors.InjectedArgumentError, ("tool()", "'memory'", "leave it out")),
    (memory_conflict, errors.MemoryConflictError, ("session memory", "'n'", "changed by another call", "merge=", "retry")),
    (memory_erased, errors.MemoryErasedError, ("session memory", "erased", "a new call")),
    (memory_exists, errors.MemoryExistsError, ("session", "line 2")),
    (memory_not_found, errors.MemoryNotFoundError, ("no such session memory", "list")),
    (memory_too_large, errors.MemoryTooLargeError, ("session memory", "'a'", "50", "Scope(max_bytes=...)")),
    (memory_validation, errors.MemoryValidationError, ("session memory", "Whole", "'count'", "nothing was written")),
    (missing_driver, errors.MissingDriverError, ("redis", "not installed", "pip install 'agent-gantry-state[redis]'")),
    (missing_identity, errors.MissingIdentityError, ("no session", "with gantry.session(...):", 'session="local"')),
    (not_atomic, errors.NotAtomicError, ("session", "user", "different stores", "partial_commits=True")),
    (not_listable, errors.NotListableError, ("memcached", "listed", "another store")),
    (orphaned, errors.OrphanedCallError, ("nothing was written", "has failed", "gantry.independent()")),
    (partial_commit, errors.PartialCommitError, ("in part", "session", "user", "StoreUnavailableError")),
    (read_only, errors.ReadOnlyMemoryError, ("session memory", "'a'", "read_only=True")),
    (resolver, errors.ResolverError, ("by_header", "'session'", "ValueError")),
    (session_owner, errors.SessionOwnerError, ("this session", "another caller", "adopt=True")),
    (store_closed, errors.StoreClosedError, ("gantry is closed", "make a new one")),
    (store_unavailable, errors.StoreUnavailableError, ("no directory 'place'", "state.db", "make it first")),
    (store_url, errors.StoreURLError, ("redis://", "port", "%40")),
    (undeclared_key, errors.UndeclaredKeyError, ("session memory", "'active'", "keys=")),
    (unstorable_value, errors.UnstorableValueError, ("memory['plan']['steps'][1]", "object", "convert it")),
]


@pytest.mark.parametrize(("provoke", "kind", "words"), PROVOKED, ids=lambda each: getattr(each, "__name__", ""))
def test_message_tells_what_where_and_what_to_do_and_no_id_or_value(provoke, kind, words):
    with pytest.raises(kind) as caught:
        provoke()

    said = str(caught.value)
    assert type(caught.value) is kind
    assert caught.value.committed in (False, None)
    for word in words:
        assert word in said
    assert SECRET not in said
    assert "\n" not in said
    assert "  " not in said
    assert said == said.strip()
    assert 20 < len(said) <= LONGEST
    assert not said[0].isupper() or said.split()[0] in ("PostgreSQL", "Redis"), "it reads on behind a colon"


#: Raised by nothing itself; the header of a request that is there twice has a test with a server; that a store is late has
#: one for each store.
ELSEWHERE = {"StateError", "CodecError", "StoreError", "AmbiguousIdentityError", "StoreTimeoutError"}


def test_every_class_of_error_is_provoked():
    classes = {name for name in errors.__all__ if issubclass(getattr(errors, name), errors.StateError)}

    assert classes == {kind.__name__ for _, kind, _ in PROVOKED} | ELSEWHERE


# What somebody in a hurry does wrong, and what the message has to hold for them to see it.

WRONG_FUNCTIONS = {
    "user": ("not str", "with_memory(scope=...)"),
    ("session", "user"): ("not tuple", "with_memory(scope=...)"),
    property(len): ("put property above with_memory",),
    5: ("not int", "above a function"),
}


@pytest.mark.parametrize("wrong", WRONG_FUNCTIONS, ids=lambda each: type(each).__name__)
def test_what_is_no_function_is_told_how_it_is_meant(wrong):
    with pytest.raises(errors.DeclarationError) as caught:
        gantry().with_memory(wrong)

    assert all(word in str(caught.value) for word in WRONG_FUNCTIONS[wrong])


def test_coroutine_is_told_not_to_be_called():
    async def tool(memory):
        pass

    called = tool({})
    with pytest.raises(errors.DeclarationError, match="decorate the function, without calling it"):
        gantry().with_memory(called)
    called.close()


OPTIONS = [
    ({"scope": Scope(ttl=1)}, "with_memory: scope must be a str, not Scope; a Scope is declared with the gantry"),
    ({"on_conflict": len}, 'on_conflict must be "raise" or "retry", not builtin_function_or_method'),
    ({"isolation": "serialisable"}, 'isolation must be "snapshot" or "serializable", not \'serialisable\''),
    ({"retries": -1}, "retries must be an int of at least 0, not -1"),
    ({"into": "my-memory"}, "into must be the name of a parameter, into=\"memory\", not 'my-memory'"),
    ({"merge": {"n": "add"}}, "'n' does not: give it one of agent_gantry_state.merge or your own, not str"),
    ({"merge": {5: merge.add}}, "one of type int is no key"),
    ({"merge": merge.add}, 'merge={"count": merge.add}, not be a function'),
    ({"merge": {"n": lambda theirs, ours: ours}}, "of base, theirs and ours; that of 'n' does not take three"),
    ({"merge": {"n": merge.newest}}, "does not take three, but gives one that does: merge.newest(count)"),
]


@pytest.mark.parametrize(("option", "said"), OPTIONS, ids=lambda each: str(each)[:30])
def test_wrong_option_is_named_with_what_it_takes(option, said):
    with pytest.raises(errors.DeclarationError) as caught:
        gantry().with_memory(**option)

    assert said in str(caught.value)


def test_merge_of_a_memory_outside_a_tool_is_looked_at_as_that_of_a_tool():
    with pytest.raises(errors.DeclarationError, match="memory: merge must map str keys to functions; 'n' does not"):
        gantry().memory(merge={"n": "add"})


def test_default_factory_that_gives_no_dict_is_told_what_to_give():
    @gantry().with_memory(default_factory=lambda: [SECRET])
    def tool(memory):
        pass

    with pytest.raises(errors.DeclarationError, match="default_factory must give a dict, not list"):
        tool()


def test_session_in_place_of_a_memory_is_told_its_decorator():
    with pytest.raises(errors.DeclarationError, match="not as SyncSession; a session is given by with_session"):

        @gantry().with_memory(into="session")
        def tool(session: SyncSession):
            pass


class _Toolbox:
    made = gantry()

    @made.with_memory
    def method(self, memory, a):
        return a

    @made.with_memory
    @staticmethod
    def static(memory, a):
        return a

    @made.with_memory
    @classmethod
    def of_class(cls, memory, a):
        return a

    @made.with_memory
    def generator(self, memory, a):
        yield a

    @made.with_memory(on_conflict="retry")
    def again(self, memory, a):
        return a


@pytest.mark.parametrize("name", ["method", "static", "of_class", "generator", "again"])
def test_memory_passed_by_position_is_told_to_be_left_out(name):
    tool = getattr(_Toolbox(), name)

    with pytest.raises(TypeError) as caught:
        tool({"a": SECRET}, 1)

    said = "() takes at most 1 positional argument from its caller, not 2: 'memory' is injected, so leave it out"
    assert str(caught.value) == f"_Toolbox.{name}{said}"
    # What Python says counts the memory as well.
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_memories_passed_by_position_to_an_async_tool_are_told_to_be_left_out():
    made = gantry()

    @made.with_memory
    async def one(a, memory):
        pass

    @made.with_memory
    @made.with_memory(scope="user", into="theirs")
    async def two(memory, theirs):
        pass

    with pytest.raises(TypeError, match=r"one\(\) takes at most 1 positional argument .*'memory' is injected"):
        asyncio.run(one(1, {}))
    with pytest.raises(TypeError, match=r"two\(\) takes at most 0 positional arguments .*are injected, so leave them out"):
        asyncio.run(two({}, {}))


def test_type_error_of_a_body_stays_as_it_is():
    @gantry().with_memory
    def tool(memory, *rest):
        return int("1", 2, 3)

    with pytest.raises(TypeError, match="int"):
        tool(1, 2)


def test_missing_argument_is_told_by_python():
    @gantry().with_memory
    def tool(name, memory):
        pass

    with pytest.raises(TypeError, match="missing 1 required positional argument: 'name'"):
        tool()


@pytest.mark.parametrize("options", [{}, {"on_conflict": "retry"}], ids=["short", "long"])
def test_forgotten_await_names_the_tool(options):
    @gantry().with_memory(**options)
    async def remember(memory):
        pass

    def forget_the_await():
        remember()
        gc.collect()

    with pytest.warns(RuntimeWarning, match="remember' was never awaited"):
        forget_the_await()


@pytest.mark.parametrize("name", ["session", "memory", "override", "independent"])
def test_forgotten_with_is_warned_of_in_the_line_of_it(name):
    made = gantry()

    def forget_the_with():
        getattr(made, name)()
        gc.collect()

    with pytest.warns(StateWarning, match=rf"write `with gantry\.{name}\(\.\.\.\):`") as caught:
        forget_the_with()

    assert caught[0].filename == __file__


@pytest.mark.parametrize("name", ["session", "memory", "override", "independent"])
def test_block_that_was_entered_is_not_warned_of(name):
    made = gantry()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        block = getattr(made, name)()
        with block:
            pass
        with block:
            pass
        del block
        gc.collect()


MISSING = [
    ("sesion", {}, "no sesion is known here; did you mean scope='session'? If not, give it with the session"),
    ("user", {"usr": "ada"}, "The identity has a usr: did you mean user="),
    (f"s-{1}", {}, "an id is no scope, and given by name, session="),
    ("my tenant", {}, "with gantry.session(..., **{'my tenant': \"...\"}):"),
]


@pytest.mark.parametrize(("scope", "keys", "said"), MISSING, ids=lambda each: str(each)[:20])
def test_scope_that_is_not_known_is_told_what_was_meant(scope, keys, said):
    made = Gantry()

    with made.session(SECRET, **keys), pytest.raises(errors.MissingIdentityError) as caught, made.memory(scope):
        pass

    assert said in str(caught.value)
    assert SECRET not in str(caught.value)


def test_async_resolver_is_told_to_be_a_plain_function():
    async def by_header(request):
        return None

    with pytest.raises(errors.ResolverError, match=r"by_header .*not a coroutine: .*make it a plain function"):
        with gantry(resolvers=[by_header]).memory():
            pass


WRONG_GANTRIES = [
    ({"resolvers": len}, "resolvers must be a list of them"),
    ({"scopes": ["user"]}, "scopes must map names to Scope(...)"),
    ({"scopes": {"user": 3600}}, "a ttl is given as Scope(ttl=...)"),
    ({"store": pathlib.Path(SECRET)}, "is no store: name one by a URL, sqlite:///path or file:///path"),
    ({"store": None}, "NoneType is no store: name one by a URL, memory:// or sqlite:///state.db"),
]


@pytest.mark.parametrize(("options", "said"), WRONG_GANTRIES, ids=lambda each: str(each)[:30])
def test_gantry_that_is_made_wrong_is_told_how(options, said):
    with pytest.raises(TypeError) as caught:
        gantry(**options)

    assert said in str(caught.value)
    assert SECRET not in str(caught.value)


def test_clock_that_is_none_is_refused_at_once():
    with pytest.raises(TypeError, match="override: clock must be a function that gives the time in seconds, not int"):
        gantry().override(clock=3)


URLS = [
    ("memory", "begin it with memory://"),
    (f"sqlite:{SECRET}.db", "begin it with sqlite://"),
    (f"{SECRET}.db", "such as memory://, sqlite:///state.db"),
    (f"sqlite://{SECRET}.db", "takes no host: write sqlite:///relative/path.db"),
    ("sqlite://:memory:", "takes no host: write .*sqlite:///:memory:"),
    (f"mongodb://user:{SECRET}@host", "no store is known for mongodb://; known: "),
    ("redis://host:99999", "its port is no number up to 65535"),
    ("redis://host?max_connection=5", "did you mean max_connections"),
]


@pytest.mark.parametrize(("url", "said"), URLS)
def test_url_that_is_written_wrong_is_told_how(url, said):
    with pytest.raises(errors.StoreURLError, match=said) as caught:
        Gantry(url)

    assert SECRET not in str(caught.value)


def _failing(base, theirs, ours):
    raise ValueError(SECRET)


def _giving_up(base, theirs, ours):
    raise merge.Conflict(SECRET)


CONFLICTS = [
    (_failing, "the merge declared for it failed with ValueError"),
    (lambda base, theirs, ours: object(), "the merge declared for it gave a value that cannot be stored"),
    (merge.add, "merge.add needs numbers, not str"),
    (_giving_up, "Declare how to merge"),
]


@pytest.mark.parametrize(("declared", "said"), CONFLICTS, ids=["failing", "unstorable", "unfit", "giving up"])
def test_conflict_tells_what_came_of_a_declared_merge(declared, said):
    made = gantry()
    with made.memory() as memory:
        memory["n"] = SECRET

    with pytest.raises(errors.MemoryConflictError) as caught:
        conflicting(made, {"n": SECRET + "1"}, {"n": SECRET + "2"}, merge={"n": declared})

    assert said in str(caught.value)
    assert SECRET not in str(caught.value)
    assert ("Mend that merge" in str(caught.value)) is ("the merge declared" in said)


def test_conflict_of_a_tool_that_runs_again_does_not_advise_to_run_it_again():
    made = gantry()

    @made.with_memory(on_conflict="retry", retries=1)
    def tool(memory):
        seen = memory["n"] = memory.get("n", 0) + 1

        def change():
            with made.memory() as there:
                there["n"] = seen + 10

        stranger(change)

    with pytest.raises(errors.MemoryConflictError, match="no more often than retries= allows") as caught:
        tool()
    assert 'on_conflict="retry"' not in str(caught.value)


async def _fetched():
    pass


def test_value_that_was_not_awaited_is_told_to_be():
    made, fetched = gantry(), _fetched()

    with pytest.raises(errors.UnstorableValueError, match=r"memory\['page'\].*coroutine.*await it"), made.memory() as memory:
        memory["page"] = fetched
    fetched.close()
    assert committed(made) == {}


class bool_(int):
    pass


bool_.__name__ = "bool"
VALUES = [
    (io.StringIO(SECRET), "StringIO, which cannot be stored; store what is in it, or its path"),
    (bool_(1), "test_messages.bool, which cannot be stored"),
]


@pytest.mark.parametrize(("value", "said"), VALUES, ids=["file", "another bool"])
def test_value_that_cannot_be_stored_is_told_by_its_own_name_and_what_to_do(value, said):
    with pytest.raises(errors.UnstorableValueError) as caught, gantry().memory() as memory:
        memory["k"] = value

    assert said in str(caught.value)


def test_state_that_no_longer_fits_its_class_is_told_how_to_correct_it():
    made = gantry()
    with made.memory() as memory:
        memory["count"] = SECRET

    @made.with_memory
    def tool(memory: Whole):
        memory.count = 1

    with pytest.raises(errors.MemoryValidationError, match="Let Whole take it, or correct what is stored, with gantry"):
        tool()


def test_memcached_that_cannot_be_reached_is_told_by_the_name_of_its_socket_alone(tmp_path):
    pytest.importorskip("pymemcache")
    made = gantry(f"memcached:///{tmp_path}/{SECRET}/memcached.sock")

    with pytest.raises(
        errors.StoreUnavailableError, match=r"memcached at socket 'memcached.sock' .*is it running"
    ) as caught:
        with made.memory():
            pass
    made.close()
    assert SECRET not in str(caught.value)


def test_postgresql_that_cannot_be_reached_is_told_by_the_name_of_its_socket_alone(tmp_path):
    pytest.importorskip("psycopg")
    place = str(tmp_path / SECRET).replace("/", "%2F")
    made = gantry(f"postgresql://{place}/db")

    with pytest.raises(
        errors.StoreUnavailableError, match=r'no connection: connection to server on socket ".s\.PGSQL'
    ) as caught:
        with made.memory():
            pass
    made.close()
    assert SECRET not in str(caught.value)


class _WithoutTLS(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.recv(65536)
        self.request.sendall(b"-ERR unknown command\r\n")


def test_redis_without_tls_is_told_to_be_one_that_may_speak_none():
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _WithoutTLS) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        made = gantry(f"rediss://127.0.0.1:{server.server_address[1]}")
        with pytest.raises(errors.StoreUnavailableError, match="maybe it speaks no TLS") as caught, made.memory():
            pass
        made.close()
        server.shutdown()
        thread.join(10)
    assert "for which redis:// stands in place of rediss://" in str(caught.value)
