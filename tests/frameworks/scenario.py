"""What must hold in every framework, whatever runs the tools.

Each check is a generator: it yields runs that are to be made at once, and goes on when all of them have ended. `drive`
and `adrive` make them, with a function that the framework's test supplies:

    run(session, user, calls)           # or async

It has a scripted model ask for all of *calls* (pairs of a tool's name and its arguments) in one turn, at best in a run of a
whole agent, in *session* and for *user*, given in the framework's own way. What it returns is not looked at, for the checks
look at what is in the store. It may raise where a tool fails.

    @pytest.mark.parametrize("check", CHECKS)
    def test_sync(check):
        drive(check, tools, run)

    @pytest.mark.anyio
    @pytest.mark.parametrize("check", CHECKS)
    async def test_async(check):
        await adrive(check, tools, run)
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from tools import INJECTED, Tools

Call = tuple[str, dict[str, Any]]


class Run(NamedTuple):
    """One run of an agent, in which its model asks for *calls* in one turn.

    Attributes:
        session: Id of the session.
        user: Id of the user.
        calls: What the model asks for.
        fails: Whether a tool fails; then the run may raise whatever the framework makes of that, or nothing.
    """

    session: str
    user: str | None
    calls: list[Call]
    fails: bool = False


Check = Callable[..., Generator[list[Run], None, None]]


def remembered(tools: Tools, scope: str = "session", **who: str) -> dict[str, Any]:
    """What is in the store."""
    with tools.gantry.memory(scope, **who) as memory:
        return dict(memory)


def two_runs_of_a_session_share(tools: Tools, a: str) -> Generator[list[Run], None, None]:
    yield [Run("s1", "ada", [(a + "note", {"item": "first"})])]
    yield [Run("s1", "ada", [(a + "note", {"item": "second"})])]

    assert tools.ran == [a + "note"] * 2
    assert remembered(tools, session="s1", user="ada") == {"items": ["first", "second"]}


def two_sessions_do_not_share(tools: Tools, a: str) -> Generator[list[Run], None, None]:
    yield [Run("s1", "ada", [(a + "note", {"item": "here"})])]
    yield [Run("s2", "ada", [(a + "note", {"item": "there"})])]

    assert remembered(tools, session="s1", user="ada") == {"items": ["here"]}
    assert remembered(tools, session="s2", user="ada") == {"items": ["there"]}


def a_user_is_known_in_every_session(tools: Tools, a: str) -> Generator[list[Run], None, None]:
    yield [Run("s1", "ada", [(a + "prefer", {"key": "language", "value": "French"})])]
    yield [Run("s2", "ada", [(a + "prefer", {"key": "size", "value": "42"})])]

    assert remembered(tools, "user", user="ada") == {"language": "French", "size": "42"}


def stacked_memories_are_of_one_caller(tools: Tools, a: str) -> Generator[list[Run], None, None]:
    yield [Run("s1", "ada", [(a + "both", {"item": "one"})])]
    yield [Run("s2", "ada", [(a + "both", {"item": "two"})])]

    assert remembered(tools, session="s1", user="ada") == {"items": ["one"]}
    assert remembered(tools, session="s2", user="ada") == {"items": ["two"]}
    assert remembered(tools, "user", user="ada") == {"n": 2}


def a_failing_tool_changes_nothing(tools: Tools, a: str) -> Generator[list[Run], None, None]:
    yield [Run("s1", "ada", [(a + "note", {"item": "kept"})])]
    yield [Run("s1", "ada", [(a + "fail", {"item": "lost"})], fails=True)]

    assert tools.ran[-1] == a + "fail"
    assert remembered(tools, session="s1", user="ada") == {"items": ["kept"]}


def three_calls_of_one_turn_count_to_three(tools: Tools, a: str) -> Generator[list[Run], None, None]:
    yield [Run("s1", "ada", [(a + "count", {"by": 1})] * 3)]

    assert remembered(tools, session="s1", user="ada") == {"n": 3}


def three_notes_of_one_turn_are_all_kept(tools: Tools, a: str) -> Generator[list[Run], None, None]:
    yield [Run("s1", "ada", [(a + "note", {"item": item}) for item in ("x", "y", "z")])]

    assert sorted(remembered(tools, session="s1", user="ada")["items"]) == ["x", "y", "z"]


def a_session_is_refused_to_another_user(tools: Tools, a: str) -> Generator[list[Run], None, None]:
    """Also where the session and the user come from the framework: the owner is bound by what it says."""
    yield [Run("s1", "ada", [(a + "note", {"item": "mine"})])]
    yield [Run("s1", "bob", [(a + "note", {"item": "not mine"})], fails=True)]

    assert remembered(tools, session="s1", user="ada") == {"items": ["mine"]}


def two_users_never_cross(tools: Tools, a: str, times: int = 200) -> Generator[list[Run], None, None]:
    for number in range(times // 2):
        yield [Run(f"of {user}", user, [(a + "both", {"item": f"{user} {number}"})]) for user in ("ada", "bob")]

    for user in ("ada", "bob"):
        items = [f"{user} {number}" for number in range(times // 2)]
        assert remembered(tools, session=f"of {user}", user=user) == {"items": items}
        assert remembered(tools, "user", user=user) == {"n": times // 2}


def two_users_do_not_cross(tools: Tools, a: str) -> Generator[list[Run], None, None]:
    yield from two_users_never_cross(tools, a, times=20)


CHECKS: tuple[Check, ...] = (
    two_runs_of_a_session_share,
    two_sessions_do_not_share,
    a_user_is_known_in_every_session,
    stacked_memories_are_of_one_caller,
    a_failing_tool_changes_nothing,
    three_calls_of_one_turn_count_to_three,
    three_notes_of_one_turn_are_all_kept,
    a_session_is_refused_to_another_user,
    two_users_never_cross,
)

#: For a second way of the same framework, which needs not be told two hundred times.
SHORT_CHECKS = (*CHECKS[:-1], two_users_do_not_cross)

#: Where a framework knows of no user, or a test has a single one.
CHECKS_WITHOUT_USERS = tuple(
    check for check in CHECKS if check not in (a_session_is_refused_to_another_user, two_users_never_cross)
)


def drive(check: Check, tools: Tools, run: Callable[..., Any], a: str = "", **options: Any) -> None:
    """Run a check without an event loop; runs of one moment each get a thread.

    Args:
        check: One of `CHECKS`.
        tools: The tools that *run* gives to the framework.
        run: Makes a run; see the top of this module.
        a: "" for the sync functions, "a" for the async ones.
        options: For the check.
    """
    with ThreadPoolExecutor() as pool:
        for runs in check(tools, a, **options):
            for each, job in [(each, pool.submit(run, *each[:3])) for each in runs]:
                _refuse(job.exception(), each)


async def adrive(check: Check, tools: Tools, run: Callable[..., Awaitable[Any]], a: str = "a", **options: Any) -> None:
    """`drive`, on an event loop; runs of one moment each get a task."""
    for runs in check(tools, a, **options):
        results = await asyncio.gather(*(run(*each[:3]) for each in runs), return_exceptions=True)
        for each, result in zip(runs, results, strict=True):
            _refuse(result, each)


def _refuse(result: Any, run: Run) -> None:
    if isinstance(result, BaseException) and not run.fails:
        raise result


def assert_hidden(*shown: Any) -> None:
    """Nothing that a model is *shown* (schemas, descriptions) speaks of what is injected."""
    assert shown
    for each in shown:
        text = each if isinstance(each, str) else json.dumps(each, default=str)
        assert text
        for word in INJECTED:
            assert word not in text.lower(), text
