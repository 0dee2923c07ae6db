"""A function that takes the identity of its caller along, for threads and pools that know nothing of it.

Only the identity goes along, never the call in whose body the function was bound: a thread may run on when that call has
ended, and what it does then must not be lost with it. So what a bound function does in another thread is a call of its own.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from agent_gantry_state.blocks import SessionBlock

__all__ = ["bound"]


def bound(fn: Any, enter: Callable[[], SessionBlock]) -> Any:
    """*fn*, each of whose calls is made inside a block of *enter*; with the name, signature and documentation of *fn*.

    Raises:
        TypeError: *fn* cannot be called, or is a generator function whose body the block would not reach.
    """
    if not callable(fn):
        raise TypeError(f"bind: a function is needed, not {type(fn).__name__}")
    if _generates(fn) and not _is_tool(fn):
        raise TypeError(
            f"bind: {getattr(fn, '__qualname__', type(fn).__name__)} is a generator function, whose body runs where it is "
            "iterated; bind a function that iterates it, or bind the tools that it calls"
        )
    call: Any = fn

    async def awaited(*args: Any, **kwargs: Any) -> Any:
        with enter():
            return await call(*args, **kwargs)

    def called(*args: Any, **kwargs: Any) -> Any:
        with enter():
            result = fn(*args, **kwargs)
        # The body of a coroutine has not run yet.
        return _awaited(result, enter) if inspect.iscoroutine(result) else result

    return functools.update_wrapper(awaited if inspect.iscoroutinefunction(fn) else called, fn)


def _generates(fn: Any) -> bool:
    return inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn)


def _is_tool(fn: Any) -> bool:
    # Where there is a tool, its module was imported.
    from agent_gantry_state.injection.tool import BoundTool, Tool

    return isinstance(fn, (Tool, BoundTool))


async def _awaited(coroutine: Coroutine[Any, Any, Any], enter: Callable[[], SessionBlock]) -> Any:
    with enter():
        return await coroutine
