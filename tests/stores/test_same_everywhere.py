"""Whatever store a memory lives on, the same comes back, the same is refused, and it is said in the same words."""

from __future__ import annotations

import asyncio
import collections
import contextvars
import dataclasses
import enum
import functools
import pathlib
import time
import types

import pytest

from agent_gantry_state import MemoryConflictError, NotAtomicError, Scope, SessionOwnerError, StateError, codec, merge
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.testing import HOSTILE_TEXTS, VALUES

pytestmark = pytest.mark.once

SERVERS = ["redis-6.2", "redis-8.2", "valkey", "redis-cluster", "postgresql", "pgbouncer", "memcached"]
APART = ["redis-cluster", "memcached"]
TOGETHER = ["file", "sqlite", "redis-6.2", "redis-8.2", "valkey", "postgresql", "pgbouncer"]
#: Seconds after which everything that was to expire has.
PATIENCE = 10.0


class Subpath(pathlib.PurePosixPath):
    pass


class Text(str):
    __slots__ = ()


class Colour(enum.Enum):
    RED = 1


class Number(enum.IntEnum):
    ONE = 1


@dataclasses.dataclass
class Point:
    x: int = 1


Pair = collections.namedtuple("Pair", ["a", "b"])


def nested(depth, wrap=lambda inner: [inner]):
    value = 1
    for _ in range(depth):
        value = wrap(value)
    return value


def cycle():
    value = []
    value.append(value)
    return value


#: Values that cannot be stored, made anew each time.
REFUSED = {
    "object": object,
    "class": lambda: Point,
    "function": lambda: nested,
    "lambda": lambda: lambda: None,
    "module": lambda: enum,
    "generator": lambda: (n for n in ()),
    "dataclass": Point,
    "subclass of a path": lambda: Subpath("/a"),
    "subclass of str": lambda: Text("a"),
    "enum": lambda: Colour.RED,
    "int enum": lambda: Number.ONE,
    "named tuple": lambda: Pair(1, 2),
    "ordered dict": lambda: collections.OrderedDict(a=1),
    "default dict": lambda: collections.defaultdict(list),
    "counter": lambda: collections.Counter("a"),
    "deque": collections.deque,
    "namespace": types.SimpleNamespace,
    "error": lambda: ValueError("a"),
    "complex": lambda: 1j,
    "range": lambda: range(3),
    "bytearray": lambda: bytearray(b"a"),
    "memoryview": lambda: memoryview(b"a"),
    "bytearray within": lambda: {"a": [1, (bytearray(b"a"),)]},
    "object within": lambda: [{"a": (1, {2: object()})}],
    "object as a key": lambda: {object(): 1},
    "nested too deeply": lambda: nested(300),
    "nested far too deeply": lambda: nested(5000),
    "nested tuples": lambda: nested(100, lambda inner: (inner,)),
    "cycle": cycle,
    "memory itself": None,
}


class Story:
    """Two gantries on one place, and how tools are called there."""

    def __init__(self, place, call):
        self.place = place
        self.mine = place.gantry(scopes={"team": Scope(owned=True)})
        self.other = place.gantry()
        self.call = functools.partial(call, self.mine)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.mine.close()
        self.other.close()

    def meanwhile(self, scope="session", deletes=(), **values):
        """Somebody else commits."""
        with self.other.independent(), self.other.memory(scope) as memory:
            for key in deletes:
                del memory[key]
            memory.update(values)

    def content(self, scope="session"):
        """Keys in order, with what a reader finds who has read nothing before."""
        with self.place.gantry() as reader, reader.memory(scope) as memory:
            return {key: codec.pack(value) for key, value in memory.items()}


FACTS = ("committed", "transient", "path", "by_scope", "keys", "key", "scope", "scopes", "parameter")


def end(tell, story):
    """What a story ends with: its result, or what its error says."""
    try:
        return tell(story)
    except StateError as error:
        facts = {name: getattr(error, name, None) for name in FACTS}
        return type(error), str(error), repr(error.__cause__), facts


def told(tell, story):
    """What a story ends with, and what is in the memories then."""
    return end(tell, story), list(story.content().items()), list(story.content("user").items())


@pytest.fixture
def compared(place, call):
    """Checks that a story goes here as it does in memory, where the values do not even become bytes."""

    def compared(tell):
        here = dataclasses.replace(place, where=MemoryStore())
        with Story(here, call) as story:
            expected = told(tell, story)
        with Story(place, call) as story:
            assert told(tell, story) == expected
        return expected

    return compared


def test_every_value_has_the_same_bytes(place, call):
    values = {f"v{index}": value for index, value in enumerate(VALUES)}
    with Story(place, call) as story:
        story.call(lambda memory: memory.update(values))

        assert list(story.content().items()) == [(key, codec.pack(value)) for key, value in values.items()]


def test_every_value_within_another_has_the_same_bytes(place, call):
    value = {"list": list(VALUES), "tuple": (1, VALUES[-1]), "keys": {(1, "a"): {"b": [None]}}}
    with Story(place, call) as story:
        story.call(lambda memory: memory.update(value))

        assert story.content() == {key: codec.pack(each) for key, each in value.items()}


def test_every_key_is_kept_exactly_and_in_order(compared):
    # Keys that begin with NUL are those of compartments.
    keys = [key for key in HOSTILE_TEXTS if not key.startswith("\0")]

    def tell(story):
        story.call(lambda memory: memory.update({key: index for index, key in enumerate(("", *keys))}))

        def again(memory):
            for key in keys[::3]:
                memory[key] = memory.pop(key)

        story.call(again)

    _, content, _ = compared(tell)
    assert len(content) == len(keys) + 1


def test_what_is_refused_is_refused_in_the_same_words(compared):
    def tell(story):
        story.meanwhile(x=1)
        ends = {}
        for name, make in REFUSED.items():

            def body(memory, make=make):
                memory["x"] = 2
                memory["plan"] = {"a": [memory if make is None else make()]}

            ends[name] = end(lambda story, body=body: story.call(body), story)
        return ends

    ends, content, _ = compared(tell)
    assert {name: issubclass(kind, StateError) for name, (kind, *_) in ends.items()} == dict.fromkeys(REFUSED, True)
    assert content == [("x", codec.pack(1))]


@pytest.mark.parametrize("key", [1, None, b"x", ("a",), 1.5], ids=repr)
def test_key_that_is_no_str_is_refused_in_the_same_words(compared, key):
    def tell(story):
        def body(memory):
            memory["x"] = 1
            memory[key] = 2

        with pytest.raises(TypeError) as caught:
            story.call(body)
        return str(caught.value)

    message, content, _ = compared(tell)
    assert "str" in message
    assert content == []


# What two callers do to each other: each of these runs on its own, and once more in memory.


def both_changed(story):
    def body(memory):
        memory["x"] = 2
        memory["new"] = 1
        story.meanwhile(x=3)

    story.call(body)


def both_made(story):
    def body(memory):
        memory["new"] = [1]
        story.meanwhile(new="text")

    story.call(body)


def deleted_here_changed_there(story):
    def body(memory):
        del memory["x"]
        story.meanwhile(x=3)

    story.call(body)


def changed_here_deleted_there(story):
    def body(memory):
        memory["x"] = 2
        memory["list"].append(5)
        story.meanwhile(deletes=["x", "list"])

    story.call(body)


def several_keys(story):
    def body(memory):
        memory["x"], memory["y"], memory["a"] = 5, 6, 7
        story.meanwhile(x=3, y=4, a="a")

    story.call(body)


def two_scopes(story):
    @story.mine.with_memory(scope="user", into="other")
    @story.mine.with_memory
    def tool(memory, other):
        memory["x"] = 5
        other["u"] = 6
        story.meanwhile(x=3)
        story.meanwhile("user", u=4)

    tool()


def merge_that_fails(story):
    def body(memory):
        memory["x"] = 5
        story.meanwhile(x=3)

    def broken(base, theirs, ours):
        raise ZeroDivisionError("no such merge")

    story.call(body, merge={"x": broken})


def merge_that_makes_what_cannot_be_stored(story):
    def body(memory):
        memory["x"] = 5
        story.meanwhile(x=3)

    story.call(body, merge={"x": lambda base, theirs, ours: object()})


def added_to_a_text(story):
    def body(memory):
        memory.add("x", 5)
        story.meanwhile(x="text")

    story.call(body)


def nested_conflict(story):
    def body(memory):
        memory["nested"]["a"]["b"] = 5
        story.meanwhile(nested={"a": {"b": 7, "c": [1]}})

    story.call(body)


def declared_conflict(story):
    def body(memory):
        memory["list"].append(5)
        story.meanwhile(list=[1, 2, 3, 4])

    story.call(body, merge={"list": merge.conflict})


def serializable(story):
    def body(memory):
        memory["x"] = memory["y"]
        story.meanwhile(y=9)

    story.call(body, isolation="serializable")


def serializable_with_a_new_key(story):
    def body(memory):
        memory["x"] = len(memory)
        story.meanwhile(new=9)

    story.call(body, isolation="serializable")


def serializable_of_some_keys(story):
    def body(memory):
        memory["x"] = memory["y"]
        story.meanwhile(y=9, z=1)

    story.call(body, isolation="serializable", keys=("x", "y"))


def retried_in_vain(story):
    def body(memory):
        memory["x"] = memory["x"] + 5
        story.meanwhile(x=memory["x"] + 1)

    story.call(body, on_conflict="retry", retries=2)


def erased_meanwhile(story):
    def body(memory):
        memory["x"] = 5
        story.other.forget("session")

    story.call(body)


def erased_and_made_anew(story):
    def body(memory):
        memory["x"] = 5
        story.other.forget("session")
        story.meanwhile(x=1)

    story.call(body)


def session_of_another_user(story):
    with story.mine.session("s1", user="bob"):
        story.call(lambda memory: memory.update(x=5))


def session_of_nobody(story):
    with story.mine.session("s1"):
        story.call(lambda memory: memory["x"])


def owned_scope_of_another(story):
    with story.mine.session("s2", user="ada", team="red"):
        story.call(lambda memory: memory.update(x=5), scope="team")
    with story.mine.session("s3", user="bob", team="red"):
        story.call(lambda memory: memory["x"], scope="team")


def unknown_identity(story):
    story.call(lambda memory: None, scope="conversation")


def key_that_was_not_declared(story):
    story.call(lambda memory: memory.update(z=1), keys=("x",))


def time_of_a_missing_key(story):
    try:
        story.call(lambda memory: memory.expire("none", 5))
    except KeyError as error:
        return type(error), str(error)


def nothing_to_say(story):
    return story.call(lambda memory: list(memory.items()))


def merged(story):
    """No conflict, and an order that both had a part in."""

    def body(memory):
        memory["mine"] = 1
        memory["list"].append("mine")
        memory["nested"]["mine"] = [1]
        memory["set"].add("mine")
        memory.add("x", 10)
        memory.setdefault("log", []).append("mine")
        memory["y"] = memory.pop("y")
        story.meanwhile(
            theirs=2,
            list=[1, 2, "theirs"],
            nested={"a": {"b": 1}, "theirs": {}},
            set={1, "theirs"},
            x=2,
            log=["theirs"],
        )

    story.call(body)
    return story.call(lambda memory: list(memory))


def order(story):
    def first(memory):
        memory.update(b=1, a=2, c=3)
        del memory["x"]

    def second(memory):
        memory["x"] = 1
        memory["a"] = 5
        memory["b"] = memory.pop("b") + 1

    def third(memory):
        old = dict(memory)
        memory.clear()
        memory.update(reversed(old.items()))

    return [story.call(lambda memory, body=body: (body(memory), list(memory))[1]) for body in (first, second, third)]


FAILING = [
    both_changed,
    both_made,
    deleted_here_changed_there,
    changed_here_deleted_there,
    several_keys,
    merge_that_fails,
    merge_that_makes_what_cannot_be_stored,
    added_to_a_text,
    nested_conflict,
    declared_conflict,
    serializable_of_some_keys,
    retried_in_vain,
    erased_meanwhile,
    erased_and_made_anew,
    session_of_another_user,
    session_of_nobody,
    owned_scope_of_another,
    unknown_identity,
    key_that_was_not_declared,
]


def begun(tell):
    """A story in whose memories something is already."""

    def tell_with(story):
        story.meanwhile(x=1, y=2, list=[1, 2], nested={"a": {"b": 1}}, set={1})
        return tell(story)

    return tell_with


@pytest.mark.parametrize("tell", FAILING, ids=lambda tell: tell.__name__)
def test_calls_that_cannot_be_committed_fail_in_the_same_words(compared, tell):
    (kind, message, _, facts), *_ = compared(begun(tell))

    assert issubclass(kind, StateError), message
    assert facts["committed"] is False


@pytest.mark.parametrize("tell", [serializable, serializable_with_a_new_key], ids=lambda tell: tell.__name__)
def test_serializable_call_fails_wherever_a_key_that_it_read_moved(place, call, tell):
    # The same error, but a store need not know the keys that moved if the call wrote others.
    with Story(place, call) as story:
        (kind, message, _, facts), content, _ = told(begun(tell), story)

    assert (kind, facts["committed"], set(facts["by_scope"])) == (MemoryConflictError, False, {"session"})
    assert facts["keys"] in ((), ("y",), ("new",))
    assert message.startswith("session memory")
    assert 'on_conflict="retry"' in message
    assert dict(content)["x"] == codec.pack(1)


@pytest.mark.parametrize("tell", [merged, order, time_of_a_missing_key, nothing_to_say], ids=lambda tell: tell.__name__)
def test_calls_that_can_be_committed_leave_the_same(compared, tell):
    compared(begun(tell))


@pytest.mark.parametrize("place", TOGETHER, indirect=True)
def test_conflict_in_two_memories_names_both(compared):
    (_, _, _, facts), *_ = compared(two_scopes)

    assert facts["by_scope"] == {"session": ("x",), "user": ("u",)}


@pytest.mark.parametrize("place", APART, indirect=True)
def test_two_memories_that_cannot_be_written_together_are_refused(place, call):
    with Story(place, call) as story:
        (kind, _, _, facts), *contents = told(two_scopes, story)

    assert (kind, facts["committed"], facts["transient"]) == (NotAtomicError, False, False)
    assert sorted(facts["scopes"]) == ["session", "user"]
    assert contents == [[("x", codec.pack(3))], [("u", codec.pack(4))]]


def until(condition, seconds=PATIENCE):
    """Wait for a condition, and ask once more when the time is over."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)


def test_key_goes_when_its_time_has_come(place, monkeypatch):
    # Memcached has a clock of whole seconds, and each of its clients has to find out where in a second it is.
    ttl, unsure = (3.0, 1.0) if place.name == "memcached" else (1.0, 0.0)
    if place.name in SERVERS:
        # Nobody asks the clients' clocks, which go wrong by a day.
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + 86_400)
    with place.gantry() as gantry:

        @gantry.with_memory
        def write(memory):
            memory.set("short", [1], ttl=ttl)
            memory.set("long", [2], ttl=1000)
            memory["ever"] = [3]

        @gantry.with_memory
        def read(memory):
            return {key: memory.ttl(key) for key in memory}

        def others_see():
            with place.gantry() as reader, reader.memory() as memory:
                return dict(memory)

        began = time.monotonic()
        write()

        first = read()
        assert list(first) == ["short", "long", "ever"]
        assert 0 < first["short"] <= ttl + unsure
        assert 990 < first["long"] <= 1000 + unsure
        assert first["ever"] is None
        until(lambda: "short" not in read())
        assert time.monotonic() - began >= ttl - unsure - 0.01
        until(lambda: others_see() == {"long": [2], "ever": [3]}, unsure)


def test_memory_whose_last_key_went_begins_anew(place):
    ttl, unsure = (2.0, 1.0) if place.name == "memcached" else (0.5, 0.0)
    with place.gantry() as gantry, place.gantry(user="bob") as theirs:
        with gantry.memory() as memory:
            memory.set("short", 1, ttl=ttl)

        def is_gone():
            with gantry.memory() as memory:
                return not memory

        def is_theirs():
            try:
                with theirs.memory() as memory:
                    memory["x"] = 1
            except SessionOwnerError:
                return False
            return True

        assert not is_theirs()
        until(is_gone)
        until(is_theirs, unsure)


@pytest.mark.parametrize("is_async", [False, True])
def test_merge_function_finds_the_context_of_its_call(place, is_async):
    said, found = contextvars.ContextVar("said"), []

    def keep(base, ours, theirs):
        found.append(said.get(None))
        return theirs

    with place.gantry() as gantry:

        def be_quicker():
            with gantry.memory() as memory:
                memory["x"] = "theirs"

        @gantry.with_memory(merge={"x": keep})
        def call(memory):
            memory["x"] = "ours"
            contextvars.Context().run(be_quicker)

        @gantry.with_memory(merge={"x": keep})
        async def acall(memory):
            memory["x"] = "ours"
            await asyncio.to_thread(contextvars.Context().run, be_quicker)

        async def main():
            said.set("by the caller")
            await acall()
            # The clients of this loop are there now.
            await acall()

        if is_async:
            asyncio.run(main())
        else:
            said.set("by the caller")
            call()

    assert found
    assert set(found) == {"by the caller"}
